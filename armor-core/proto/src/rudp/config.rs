//! What an endpoint may be told.

use std::time::Duration;

/// Longest message that can be sent, in bytes: 16 MiB of payload and 64 KiB for its head.
pub const MAX_MESSAGE: usize = (16 << 20) + (64 << 10);
/// Shortest datagram that every path must pass, in bytes of UDP payload (RFC 9000 §14).
pub const MIN_DATAGRAM: usize = 1200;
/// Bytes of reliable messages that each side may send before it has heard of the other's window.
pub const INITIAL_WINDOW: u64 = 1 << 20;

/// Bounds and times of an [`Endpoint`](super::Endpoint). The defaults suit links between daemons.
#[derive(Debug, Clone)]
pub struct Config {
    /// Most links at once, whoever has begun them.
    pub max_links: usize,
    /// Most links that peers have begun and not completed; from a half of it on they must show that they receive at their address.
    pub max_half_open: usize,
    /// How long a handshake may take.
    pub handshake_timeout: Duration,
    /// First pause before a handshake's message is sent again; it doubles up to [`probe_cap`](Config::probe_cap).
    pub handshake_resend: Duration,
    /// Most channels of a link, in each direction, reliable and unreliable counted apart.
    pub max_channels: usize,
    /// Bytes of reliable messages that a link holds for its peer: beyond it [`send`](super::Endpoint::send) is refused.
    pub send_buffer: usize,
    /// Bytes of reliable messages, whole or in parts, that a link holds for its owner; at least [`MAX_MESSAGE`] and 8.
    pub receive_window: u64,
    /// Bytes of unreliable messages that a link holds in each direction.
    pub unreliable_buffer: usize,
    /// Longest datagram that is tried, in bytes of UDP payload: 1472 is Ethernet's with IPv4, 1452 with IPv6. At most 16,000.
    pub max_datagram: usize,
    /// How long an acknowledgement may be kept (RFC 9000, max_ack_delay).
    pub ack_delay: Duration,
    /// Packets that are acknowledged together when none is missing.
    pub ack_packets: u32,
    /// Longest pause between two probes of a peer that does not answer.
    pub probe_cap: Duration,
    /// Pause between signs of life of a link whose owner [is interested](super::Endpoint::set_liveness).
    pub keep_alive: Duration,
    /// Keys are renewed after this long; they may be sooner, by the number of packets.
    pub renew_keys: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_links: 1024,
            max_half_open: 128,
            handshake_timeout: Duration::from_secs(10),
            handshake_resend: Duration::from_millis(50),
            max_channels: 4096,
            send_buffer: 32 << 20,
            receive_window: 32 << 20,
            unreliable_buffer: 1 << 20,
            max_datagram: 1472,
            ack_delay: Duration::from_millis(5),
            ack_packets: 8,
            probe_cap: Duration::from_millis(150),
            keep_alive: Duration::from_millis(250),
            renew_keys: Duration::from_secs(3600),
        }
    }
}

impl Config {
    /// The same with what is out of bounds put into them.
    pub(super) fn bounded(mut self) -> Self {
        self.max_datagram = self.max_datagram.clamp(MIN_DATAGRAM, 16_000);
        self.receive_window = self.receive_window.max(MAX_MESSAGE as u64 + 8);
        self.probe_cap = self.probe_cap.max(Duration::from_millis(10));
        self.keep_alive = self.keep_alive.max(Duration::from_millis(10));
        self.handshake_resend = self.handshake_resend.clamp(Duration::from_millis(10), self.probe_cap);
        self.ack_packets = self.ack_packets.max(1);
        self
    }
}
