//! Datagrams for an endpoint of R-UDP: from strangers, and packets with good checksums whose frames are anything. `cargo fuzz run rudp`; the corpus also
//! runs as an ordinary test in armor-proto.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "rudp/datagrams.rs"]
mod datagrams;

fuzz_target!(|data: &[u8]| {
    datagrams::run(data);
});
