//! How a policy's state becomes a few bytes, and comes back from them after the ARMOR's process has died.
//!
//! Invariant: what was not written here, or was cut or altered since, is refused; nothing in it can cause a panic.

use serde::Serialize;
use serde::de::DeserializeOwned;
use xxhash_rust::xxh3::xxh3_64;

/// Most bytes that [`MarkPolicy::save`](super::MarkPolicy::save) may add.
pub const MAX_SAVED: usize = 1024;

/// Length of the check at the end.
const CHECK: usize = 4;

/// Bytes that are no saved state of this policy. The policy is unchanged; a connection whose policy cannot be restored keeps
/// its mark and sets no further one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("these {length} bytes are no saved state of the mark policy `{policy}`: {reason}")]
pub struct PolicyStateError {
    /// Name of the policy that was asked.
    pub policy: &'static str,
    /// How many bytes there were.
    pub length: usize,
    /// What is wrong with them.
    pub reason: &'static str,
}

/// Appends `state` under the name of its policy.
pub(super) fn seal<T: Serialize>(policy: &'static str, state: &T, out: &mut Vec<u8>) {
    let start = out.len();
    if rmp_serde::encode::write(out, &(policy, state)).is_err() {
        // Plain data into memory: it cannot fail. If it did, nothing would be there to restore.
        out.truncate(start);
    }
    let check = xxh3_64(&out[start..]).to_le_bytes();
    out.extend_from_slice(&check[..CHECK]);
}

/// Reads what [`seal`] has written; `is_sound` looks at what the types do not say.
pub(super) fn open<T: DeserializeOwned>(
    policy: &'static str,
    bytes: &[u8],
    is_sound: impl FnOnce(&T) -> bool,
) -> Result<T, PolicyStateError> {
    let refuse = |reason| PolicyStateError { policy, length: bytes.len(), reason };
    let (body, check) = bytes.split_last_chunk::<CHECK>().ok_or_else(|| refuse("too few"))?;
    if bytes.len() > MAX_SAVED {
        return Err(refuse("too many"));
    }
    if xxh3_64(body).to_le_bytes()[..CHECK] != check[..] {
        return Err(refuse("they were altered"));
    }
    let (name, state): (String, T) = rmp_serde::from_slice(body).map_err(|_| refuse("another policy's, or another version's"))?;
    if name != policy {
        return Err(refuse("another policy's"));
    }
    if !is_sound(&state) {
        return Err(refuse("they contradict themselves"));
    }
    Ok(state)
}
