//! Mark policies: what a client and a server say. `cargo fuzz run marks`; the corpus also runs as an ordinary test in armor-proto.
#![no_main]

#[path = "marks/conversation.rs"]
mod conversation;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = conversation::listen(data);
});
