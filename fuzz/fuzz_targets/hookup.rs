//! Hook-up requests, replies and names: bytes from an application. `cargo fuzz run hookup`; the corpus also runs as a test.
#![no_main]

use armor_proto::hookup::{Name, Reply, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(request) = Request::decode(data) {
        let _ = request.encode();
    }
    let _ = Reply::decode(data);
    if let Ok(name) = Name::from_bytes(data) {
        assert_eq!(name.to_bytes(), data);
    }
});
