//! What is said to a vault, and what a vault says. `cargo fuzz run vault`; the corpus also runs as a test.
#![no_main]

use armor_vault::message::{Answer, Request, decode, encode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(request) = decode::<Request>(data) {
        let _ = encode(&request);
    }
    if let Ok(answer) = decode::<Answer>(data) {
        let _ = encode(&answer);
    }
});
