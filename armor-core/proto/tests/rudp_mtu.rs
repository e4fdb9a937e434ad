//! R-UDP: the path's MTU is found, and found again (RFC 8899), in simulated time.
#![allow(clippy::unwrap_used, clippy::panic)]

mod rudp_sim;

use std::time::Duration;

use armor_proto::rudp::{Config, MIN_DATAGRAM};
use rudp_sim::{Bulk, HEADERS, Wire, World, seeds};

#[test]
fn it_is_found() {
    for mtu in [1228, 1280, 1300, 1400, 1480, 1499, 1500, 9000] {
        for loss in [0.0, 0.05] {
            let wire = Wire { mtu, loss, ..Wire::default() };
            let most = if mtu > 1500 { 8972 } else { 1472 };
            let (mut world, a, _) = World::pair_with(1, wire.clone(), wire, Config { max_datagram: most, ..Config::default() });
            world.nodes[0].bulk.push(Bulk { link: a, channels: 1, size: 1000, left: 2000, next: 0 });
            world.drive(0);
            world.run_for(Duration::from_secs(5));
            let found = world.nodes[0].endpoint.status(a).unwrap().datagram;
            assert!(found <= mtu - HEADERS, "{found} bytes in an MTU of {mtu}");
            assert!(found + 48 >= mtu - HEADERS || found == MIN_DATAGRAM, "{found} bytes in an MTU of {mtu}, {loss} loss");
        }
    }
}

#[test]
fn a_black_hole_is_noticed_and_a_wider_path_too() {
    for seed in seeds(5) {
        let wire = Wire { rate: 20_000_000, queue: 50_000, ..Wire::default() };
        let (mut world, a, _) = World::pair(seed, wire.clone(), wire);
        world.nodes[1].sink = true;
        world.nodes[0].bulk.push(Bulk { link: a, channels: 1, size: 3000, left: u64::MAX, next: 0 });
        world.drive(0);
        world.run_for(Duration::from_secs(1));
        assert_eq!(world.nodes[0].endpoint.status(a).unwrap().datagram, 1472);
        let before = world.nodes[1].bytes;
        world.wires[0].mtu = 1300;
        world.run_for(Duration::from_secs(2));
        let found = world.nodes[0].endpoint.status(a).unwrap().datagram;
        assert!((1240..=1272).contains(&found), "{found} bytes in an MTU of 1300");
        assert!(world.nodes[1].bytes - before > 2_000_000, "{} bytes in two seconds", world.nodes[1].bytes - before);
        world.nodes[0].bulk[0].left = 0;
        world.wires[0].mtu = 1500;
        // It is looked for again after ten minutes, when there is something to send.
        world.run_for(Duration::from_secs(700));
        world.nodes[0].bulk[0].left = 100;
        world.drive(0);
        world.run_for(Duration::from_secs(1));
        assert_eq!(world.nodes[0].endpoint.status(a).unwrap().datagram, 1472);
    }
}
