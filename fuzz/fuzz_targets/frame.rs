//! Frame decoding: bytes from a peer. `cargo fuzz run frame`; the corpus also runs as an ordinary test in armor-proto.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut buffer = BytesMut::from(data);
    while let Ok(Some(frame)) = armor_proto::frame::Frame::take(&mut buffer) {
        if let Ok(message) = frame.decode() {
            let _ = armor_proto::frame::encode(&message, &mut BytesMut::new());
        }
    }
});
