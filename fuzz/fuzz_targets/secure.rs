//! What a stranger says to a daemon with keys: handshake messages, lists, records, packets. `cargo fuzz run secure`; the corpus also runs as an ordinary
//! test in armor-proto.
#![no_main]

#[path = "secure/stranger.rs"]
mod stranger;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    assert!(!stranger::speak(data).0, "a stranger was believed");
});
