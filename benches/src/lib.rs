//! What `armor bench` measures with (thesis §6.1.2, the interactive application): ordinary TCP programs that know nothing of ARMOR.
//!
//! `bench-server` does what each connection's first bytes ask for ([`wire`]), `bench-client` measures and is told by its stdin what ([`order`]),
//! `bench-proxy` is one half of a minimal dual proxy ([`proxy`]). Server and proxy are one thread around [`poller`].

pub mod bulk;
pub mod calls;
pub mod exchange;
pub mod order;
pub mod poller;
pub mod proxy;
pub mod server;
pub mod sessions;
pub mod times;
pub mod wire;
