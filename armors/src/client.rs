//! A blocking speaker at a gateway: attaches as an ephemeral ARMOR, sends messages, waits for answers.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hasher as _};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use armor_core::operations::{StatusQuery, StatusReport};
use armor_elements::operations::ArmorAttach;
use armor_proto::frame::Frame;
use armor_proto::ids::{ArmorId, MessageId};
use armor_proto::message::Message;
use armor_proto::operation::{BundledOperation, Operation, decode};
use bytes::BytesMut;

use crate::environment::{ArmorDirectory, NotUp};

/// One connection to a gateway.
pub(crate) struct Client {
    stream: UnixStream,
    buffer: BytesMut,
    id: ArmorId,
    next: u64,
    gateway: String,
}

impl Client {
    /// Attaches to the gateway in the directory of the FTM or of a daemon.
    pub(crate) fn attach(directory: &ArmorDirectory) -> anyhow::Result<Client> {
        let socket = directory.gateway();
        let gateway = format!("{} at {}", directory.name, socket.display());
        let stream = UnixStream::connect(&socket).map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                anyhow::Error::new(NotUp(format!("{gateway} does not answer ({error}); start it with `armor up`")))
            }
            _ => anyhow::Error::new(error).context(format!("{gateway} cannot be reached")),
        })?;
        stream.set_write_timeout(Some(Duration::from_secs(5))).with_context(|| gateway.clone())?;
        let random = std::hash::RandomState::new().build_hasher().finish();
        let id = ArmorId::ephemeral(random);
        let mut client = Client { stream, buffer: BytesMut::with_capacity(64 << 10), id, next: random << 32, gateway };
        let pid = std::process::id();
        client.send(directory.armor(), ArmorAttach { armor: id, name: format!("armor-{pid}"), pid })?;
        Ok(client)
    }

    /// Sends one operation to one ARMOR.
    pub(crate) fn send<O: Operation>(&mut self, destination: ArmorId, operation: O) -> anyhow::Result<()> {
        let mut message = Message::to(destination, operation);
        self.next = self.next.wrapping_add(1);
        message.source = self.id;
        message.id = MessageId(self.next);
        let encoded = armor_proto::frame::encode(&message, &mut BytesMut::new())?;
        self.stream.write_all(&encoded.head).with_context(|| format!("{} to {}", O::NAME, self.gateway))
    }

    /// Waits for an operation of type `O`; others that come are passed over.
    ///
    /// # Errors
    /// When none has come in time, or the gateway has closed.
    pub(crate) fn wait<O: Operation>(&mut self, timeout: Duration) -> anyhow::Result<O> {
        match self.next::<O>(Instant::now() + timeout)? {
            Some(operation) => Ok(operation),
            None => bail!("{} did not come from {} within {} s", O::NAME, self.gateway, timeout.as_secs()),
        }
    }

    /// The state of ARMORs: those that answer in time.
    pub(crate) fn statuses(&mut self, armors: &[ArmorId], timeout: Duration) -> anyhow::Result<HashMap<ArmorId, serde_json::Value>> {
        for &armor in armors {
            self.send(armor, StatusQuery {})?;
        }
        let deadline = Instant::now() + timeout;
        let mut reports = HashMap::new();
        while armors.iter().any(|armor| !reports.contains_key(armor)) {
            let Some(StatusReport { armor, json }) = self.next(deadline)? else { break };
            let status = serde_json::from_str(&json).with_context(|| format!("MSG_STATUS_REPORT of {armor} is no JSON"))?;
            reports.insert(armor, status);
        }
        Ok(reports)
    }

    /// The next operation of type `O`, `None` at the deadline.
    fn next<O: Operation>(&mut self, deadline: Instant) -> anyhow::Result<Option<O>> {
        loop {
            let Some(message) = self.message(deadline)? else { return Ok(None) };
            for operation in message.top().iter().flat_map(|bundle| &bundle.operations) {
                if let BundledOperation::Encoded { kind, body } = operation
                    && *kind == O::KIND
                {
                    let decoded =
                        decode(body).with_context(|| format!("{} from {}: use the same release on every node", O::NAME, self.gateway))?;
                    return Ok(Some(decoded));
                }
            }
        }
    }

    fn message(&mut self, deadline: Instant) -> anyhow::Result<Option<Message>> {
        let mut chunk = [0; 16 << 10];
        loop {
            if let Some(frame) = Frame::take(&mut self.buffer).with_context(|| self.gateway.clone())? {
                return Ok(Some(frame.decode().with_context(|| self.gateway.clone())?));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left)).with_context(|| self.gateway.clone())?;
            match self.stream.read(&mut chunk) {
                Ok(0) => bail!("{} has closed the connection", self.gateway),
                Ok(got) => self.buffer.extend_from_slice(&chunk[..got]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
                Err(error) => return Err(error).with_context(|| self.gateway.clone()),
            }
        }
    }
}
