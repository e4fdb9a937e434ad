//! Operations that every ARMOR knows.

armor_proto::operations! { CORE_OPERATIONS;
    /// A message wants to leave this ARMOR. Delivered inside one ARMOR only; transport elements subscribe, in composition
    /// order, and take the message with [`Context::take_routed`](crate::context::Context::take_routed) when they can reach its destination.
    0x0001 MSG_ROUTE => pub struct Route {}
    /// Comes home to the sender of an acknowledged message (thesis §5.5).
    0x0002 MSG_BUNDLE_ACK => pub struct BundleAck {
        /// Number of the message that is acknowledged.
        message: armor_proto::ids::MessageId,
    }
    /// Asks an ARMOR for its state; answered to the message's source with `MSG_STATUS_REPORT`.
    0x0003 MSG_STATUS_QUERY => pub struct StatusQuery {}
    /// Answer to `MSG_STATUS_QUERY`: JSON text.
    0x0004 MSG_STATUS_REPORT => pub struct StatusReport {
        /// Who answers.
        armor: armor_proto::ids::ArmorId,
        /// JSON object: name, kind, pid, elements.
        json: String,
    }
    /// Ends the ARMOR in an orderly way.
    0x0005 MSG_SHUTDOWN => pub struct Shutdown {}
    /// An event on its way to the event log of the FTM.
    0x0006 MSG_EVENT_REPORT => pub struct EventReport {
        /// The event.
        event: crate::events::Event,
    }
    /// Captured state of one element, on its way to where it outlives the ARMOR (thesis §3.2.1: capture the ARMOR state).
    0x0007 MSG_STATE_CAPTURED => pub struct StateCaptured {
        /// Name of the element.
        element: String,
        /// What [`Element::capture`](crate::element::Element::capture) gave.
        #[serde(with = "serde_bytes")]
        state: Vec<u8>,
    }
    /// A message is to be sent until it is acknowledged (thesis §5.5). Delivered inside one ARMOR only, when an element has called
    /// [`Context::send_reliable`](crate::context::Context::send_reliable); the element that does so takes the message with
    /// [`Context::take_routed`](crate::context::Context::take_routed).
    0x0008 MSG_SEND_RELIABLE => pub struct SendReliable {}
    /// Stands before the rest of a bundle whose processing was interrupted by a bundle for another ARMOR (thesis §3.2.1: nested invocation). By it
    /// an ARMOR tells an acknowledged message that comes back from a copy that was sent again.
    0x0009 MSG_BUNDLE_RESUMED => pub struct BundleResumed {}
}

#[cfg(test)]
mod tests {
    #[test]
    fn operation_structs_are_named_after_their_messages() {
        for (_, wire, name) in super::CORE_OPERATIONS {
            assert_eq!(*name, armor_proto::operation::struct_name(wire));
        }
    }
}
