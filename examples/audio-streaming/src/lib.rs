//! The demo application of thesis §4.6: a multithreaded audio streaming server and its client.
//!
//! The server ([`server::Server`]) streams one [`programme::Programme`] as a WAV byte stream,
//! a packet every 20 ms; the client ([`client::play`]) plays what arrives and measures when it
//! came ([`arrivals::ArrivalRecorder`]). Both ends share the [`wav::StreamHeader`], the
//! [`schedule::Schedule`] and the [`request::PlayRequest`], and nothing else.
//!
//! Invariant: nothing here knows of any framework that might watch, kill or restart these
//! programs. They are plain `std::net` sockets and threads, so that they show what a framework
//! does for an application that was never changed for it.

pub mod arrivals;
pub mod client;
pub mod playback;
pub mod programme;
pub mod progress;
pub mod report;
pub mod request;
pub mod schedule;
pub mod server;
pub mod synth;
pub mod wav;
