//! A radio link: a UDP relay that loses, goes dark, and gives either end another address.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// Whoever sends to `address()` speaks to the target.
pub struct Air {
    state: Arc<State>,
}

struct State {
    target: Mutex<Option<SocketAddr>>,
    front: Mutex<Arc<UdpSocket>>,
    /// By the near end's address: the socket that stands for it at the target.
    backs: Mutex<HashMap<SocketAddr, Arc<UdpSocket>>>,
    random: Mutex<StdRng>,
    /// Lost datagrams in a thousand.
    loss: AtomicU32,
    dark: AtomicBool,
    ended: AtomicBool,
    passed: AtomicU64,
    lost: AtomicU64,
}

fn socket() -> Arc<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("port");
    socket.set_read_timeout(Some(Duration::from_millis(50))).expect("timeout");
    Arc::new(socket)
}

impl State {
    fn passes(&self) -> bool {
        let lost = self.dark.load(Ordering::Relaxed)
            || self.random.lock().expect("random").random_range(0..1000) < self.loss.load(Ordering::Relaxed);
        let counter = if lost { &self.lost } else { &self.passed };
        counter.fetch_add(1, Ordering::Relaxed);
        !lost
    }

    fn back(self: &Arc<Self>, near: SocketAddr) -> Arc<UdpSocket> {
        let mut backs = self.backs.lock().expect("backs");
        let make = || {
            let (back, state) = (socket(), Arc::clone(self));
            let reader = Arc::clone(&back);
            std::thread::spawn(move || state.carry_home(&reader, near));
            back
        };
        Arc::clone(backs.entry(near).or_insert_with(make))
    }

    fn carry_home(&self, back: &Arc<UdpSocket>, near: SocketAddr) {
        let mut buffer = vec![0; 65_536];
        while !self.ended.load(Ordering::Relaxed) {
            // Without its place in the table it is an address that nobody has any more.
            if !self.backs.lock().expect("backs").get(&near).is_some_and(|current| Arc::ptr_eq(current, back)) {
                return;
            }
            if let Ok((length, _)) = back.recv_from(&mut buffer)
                && self.passes()
            {
                let front = Arc::clone(&self.front.lock().expect("front"));
                let _ = front.send_to(&buffer[..length], near);
            }
        }
    }

    fn carry_out(self: &Arc<Self>, front: &Arc<UdpSocket>) {
        let mut buffer = vec![0; 65_536];
        while !self.ended.load(Ordering::Relaxed) && Arc::ptr_eq(front, &self.front.lock().expect("front")) {
            let Ok((length, near)) = front.recv_from(&mut buffer) else { continue };
            let target = *self.target.lock().expect("target");
            if self.passes()
                && let Some(target) = target
            {
                let _ = self.back(near).send_to(&buffer[..length], target);
            }
        }
    }
}

impl Air {
    pub fn new(seed: u64) -> Air {
        println!("air with seed {seed}");
        let state = Arc::new(State {
            target: Mutex::default(),
            front: Mutex::new(socket()),
            backs: Mutex::default(),
            random: Mutex::new(StdRng::seed_from_u64(seed)),
            loss: AtomicU32::new(0),
            dark: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            passed: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        });
        let air = Air { state };
        air.listen();
        air
    }

    fn listen(&self) {
        let (state, front) = (Arc::clone(&self.state), Arc::clone(&self.state.front.lock().expect("front")));
        std::thread::spawn(move || state.carry_out(&front));
    }

    pub fn leads_to(&self, target: &str) {
        *self.state.target.lock().expect("target") = Some(target.parse().expect("address"));
    }

    pub fn address(&self) -> SocketAddr {
        self.state.front.lock().expect("front").local_addr().expect("address")
    }

    /// Loses so many datagrams in a thousand, in each direction.
    pub fn loses(&self, per_mille: u32) {
        self.state.loss.store(per_mille, Ordering::Relaxed);
    }

    pub fn is_dark(&self, dark: bool) {
        self.state.dark.store(dark, Ordering::Relaxed);
    }

    /// The near end has another address as the target sees it; what is sent to the old one is lost.
    pub fn moves_near_end(&self) {
        self.state.backs.lock().expect("backs").clear();
    }

    /// The target has another address as the near end sees it. The near end learns of it only from the target.
    pub fn moves_target(&self) {
        *self.state.front.lock().expect("front") = socket();
        self.listen();
    }

    pub fn passed(&self) -> u64 {
        self.state.passed.load(Ordering::Relaxed)
    }

    pub fn lost(&self) -> u64 {
        self.state.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Air {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::Relaxed);
    }
}
