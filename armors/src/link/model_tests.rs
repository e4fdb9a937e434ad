//! The model held to its own settings, in simulated time. Each test prints the seed that it has drawn; `ARMOR_SEED` repeats it.

use super::*;

const MS: Duration = Duration::from_millis(1);

fn seed() -> u64 {
    let seed = std::env::var("ARMOR_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("ARMOR_SEED={seed}");
    seed
}

fn direction(settings: Settings) -> Direction {
    Direction::new(settings, None, seed())
}

/// A packet that carries its number.
fn packet(number: u64, bytes: usize) -> Vec<u8> {
    let mut packet = vec![0; bytes.max(8)];
    packet[..8].copy_from_slice(&number.to_be_bytes());
    packet
}

/// Sends `count` packets at intervals, and gives who came out when.
fn play(direction: &mut Direction, count: u64, interval: Duration, bytes: usize) -> Vec<(Duration, u64)> {
    let mut out = Vec::new();
    let mut now = Duration::ZERO;
    for number in 0..count {
        let until = interval * u32::try_from(number).unwrap();
        while let Some(next) = direction.next(now).filter(|next| *next <= until) {
            now = now.max(next);
            take(direction, now, &mut out);
        }
        now = until;
        direction.enter(now, packet(number, bytes));
        take(direction, now, &mut out);
    }
    while let Some(next) = direction.next(now).filter(|next| *next < Duration::MAX) {
        now = now.max(next);
        take(direction, now, &mut out);
    }
    out
}

fn take(direction: &mut Direction, now: Duration, out: &mut Vec<(Duration, u64)>) {
    while let Some(packet) = direction.leave(now) {
        out.push((now, u64::from_be_bytes(packet[..8].try_into().unwrap())));
    }
}

/// A share that was met `hits` times of `count`: within five standard deviations, one run in two million is further off.
fn assert_share(hits: u64, count: u64, share: f64) {
    let mean = count as f64 * share;
    let bound = 5.0 * (mean * (1.0 - share)).sqrt();
    assert!((hits as f64 - mean).abs() <= bound, "{hits} of {count} instead of {mean} ± {bound}");
}

#[test]
fn a_loss_of_two_per_cent_loses_two_per_cent() {
    for share in [0.0, 0.02, 0.2, 1.0] {
        let mut link = direction(Settings { loss: Some(Share(share)), ..Settings::default() });
        let out = play(&mut link, 100_000, MS, 100);
        assert_share(link.counts().lost, 100_000, share);
        assert_eq!(out.len() as u64 + link.counts().lost, 100_000);
    }
}

#[test]
fn every_packet_comes_out_after_the_delay_exactly() {
    let mut link = direction(Settings { delay: Some(Span(10 * MS)), ..Settings::default() });
    let out = play(&mut link, 1000, MS, 100);
    assert!(out.iter().all(|(at, number)| *at == MS * *number as u32 + 10 * MS));
    assert_eq!(out.len(), 1000);
}

#[test]
fn jitter_is_even_between_nothing_and_its_bound_and_keeps_the_order() {
    // Packets far apart: nobody waits for the one before it.
    let mut link = direction(Settings { delay: Some(Span(10 * MS)), jitter: Some(Span(8 * MS)), ..Settings::default() });
    let out = play(&mut link, 20_000, 50 * MS, 100);
    let more: Vec<f64> = out.iter().map(|(at, number)| (*at - 50 * MS * *number as u32 - 10 * MS).as_secs_f64() * 1e3).collect();
    assert!(more.iter().all(|more| (0.0..=8.0).contains(more)));
    for quarter in 1..4u32 {
        let below = more.iter().filter(|more| **more < 2.0 * f64::from(quarter)).count() as u64;
        assert_share(below, 20_000, f64::from(quarter) / 4.0);
    }
    // Packets close together stay in order all the same.
    let mut link = direction(Settings { jitter: Some(Span(50 * MS)), ..Settings::default() });
    let numbers: Vec<u64> = play(&mut link, 5000, MS, 100).into_iter().map(|(_, number)| number).collect();
    assert!(numbers.is_sorted());
}

#[test]
fn a_rate_of_a_hundred_megabits_passes_a_hundred() {
    let mut link = direction(Settings { rate: Some(Rate(Some(100_000_000))), ..Settings::default() });
    // 1500 bytes each 100 µs are 120 Mbit/s.
    let out = play(&mut link, 50_000, Duration::from_micros(100), 1500);
    let passed = out.iter().filter(|(at, _)| *at > Duration::from_secs(1) && *at <= Duration::from_secs(4)).count();
    let megabits = passed as f64 * 1500.0 * 8.0 / 3e6;
    assert!((99.9..=100.1).contains(&megabits), "{megabits} Mbit/s");
    assert!(link.counts().queue_dropped > 0);
    // And what is below the rate waits for nothing but its own transmission.
    let mut link = direction(Settings { rate: Some(Rate(Some(100_000_000))), ..Settings::default() });
    let out = play(&mut link, 1000, Duration::from_micros(125), 1500);
    assert!(out.iter().all(|(at, number)| *at == Duration::from_micros(125 * number + 120)));
    assert_eq!(link.counts().queue_dropped, 0);
}

#[test]
fn the_queue_holds_what_it_may_and_drops_the_rest_at_its_tail() {
    let rate = Some(Rate(Some(12_000_000)));
    for queue in [Queue::Bytes(15_000), Queue::Span(10 * MS)] {
        let mut link = direction(Settings { rate, queue: Some(queue), ..Settings::default() });
        // 1500 bytes take 1 ms. One is in transmission, ten wait.
        for number in 0..50 {
            link.enter(Duration::ZERO, packet(number, 1500));
        }
        assert_eq!(link.counts().queue_dropped, 39, "{queue:?}");
        assert_eq!(link.counts().longest_queue_bytes, 15_000, "{queue:?}");
        let mut out = Vec::new();
        take(&mut link, 11 * MS, &mut out);
        assert_eq!(out.iter().map(|(_, number)| *number).collect::<Vec<_>>(), (0..11).collect::<Vec<_>>());
    }
}

#[test]
fn what_waits_goes_at_the_new_rate() {
    let mut link = direction(Settings { rate: Some(Rate(Some(12_000))), queue: Some(Queue::Bytes(100_000)), ..Settings::default() });
    for number in 0..11 {
        link.enter(Duration::ZERO, packet(number, 1500));
    }
    link.change(MS, Settings { rate: Some(Rate(Some(12_000_000))), ..Settings::default() });
    // The first is in transmission for a second; the others take 1 ms each.
    let mut out = Vec::new();
    take(&mut link, 1009 * MS, &mut out);
    assert_eq!(out.len(), 10);
    take(&mut link, 1010 * MS, &mut out);
    assert_eq!(out.len(), 11);
}

#[test]
fn a_rate_of_nothing_stalls_until_it_is_changed() {
    let mut link = direction(Settings { rate: Some(Rate(Some(0))), ..Settings::default() });
    link.enter(Duration::ZERO, packet(0, 1500));
    assert_eq!(link.leave(1000 * MS), None);
    assert_eq!(link.next(1000 * MS), Some(Duration::MAX));
    link.change(2000 * MS, Settings { rate: Some(Rate(Some(12_000_000))), ..Settings::default() });
    assert_eq!(link.leave(2000 * MS), None);
    assert!(link.leave(2001 * MS).is_some());
}

#[test]
fn bursts_have_the_length_and_the_share_of_their_chain() {
    let chain = Bursts { to_bad: 0.01, to_good: 0.25, bad_loss: 1.0, good_loss: 0.0 };
    let mut link = direction(Settings { burst_loss: Some(chain), ..Settings::default() });
    let out = play(&mut link, 400_000, MS, 100);
    let mut bursts = Vec::new();
    for pair in out.windows(2) {
        let lost = pair[1].1 - pair[0].1 - 1;
        if lost > 0 {
            bursts.push(lost as f64);
        }
    }
    // Lengths are geometric: mean 4, variance (1 - r) / r² = 12. Five standard deviations of the mean.
    let mean = bursts.iter().sum::<f64>() / bursts.len() as f64;
    assert!((mean - 4.0).abs() < 5.0 * (12.0 / bursts.len() as f64).sqrt(), "mean length {mean} of {} bursts", bursts.len());
    // A burst begins for 1 in 104 packets.
    let begun = bursts.len() as f64 / 400_000.0;
    assert!((begun * 104.0 - 1.0).abs() < 0.1, "{begun}");
    assert!(bursts.iter().any(|length| *length > 8.0));
}

#[test]
fn blackouts_are_exact() {
    let schedule = "100ms+50ms,300ms+1ms".parse().unwrap();
    let mut link = direction(Settings { blackout: Some(schedule), ..Settings::default() });
    let out: Vec<u64> = play(&mut link, 400, MS, 100).into_iter().map(|(_, number)| number).collect();
    let expected: Vec<u64> = (0..400).filter(|number| !(100..150).contains(number) && *number != 300).collect();
    assert_eq!(out, expected);
    assert_eq!(link.counts().lost_in_blackouts, 51);
}

#[test]
fn nothing_comes_out_in_the_dark() {
    let mut link = direction(Settings { delay: Some(Span(10 * MS)), ..Settings::default() });
    link.enter(Duration::ZERO, packet(0, 100));
    link.enter(8 * MS, packet(1, 100));
    link.darken(9 * MS, 5 * MS);
    link.enter(13 * MS, packet(2, 100));
    link.enter(14 * MS, packet(3, 100));
    let mut out = Vec::new();
    take(&mut link, 24 * MS, &mut out);
    assert_eq!(out.iter().map(|(_, number)| *number).collect::<Vec<_>>(), [1, 3]);
    // Without an end, and ended.
    link.darken(30 * MS, Duration::MAX);
    link.enter(1000 * MS, packet(4, 100));
    link.darken(1001 * MS, Duration::ZERO);
    link.enter(1001 * MS, packet(5, 100));
    take(&mut link, 2000 * MS, &mut out);
    assert_eq!(out.iter().map(|(_, number)| *number).collect::<Vec<_>>(), [1, 3, 5]);
}

#[test]
fn the_share_that_is_to_be_reordered_is_overtaken() {
    let mut link = direction(Settings { reorder: Some(Share(0.1)), reorder_by: Some(Span(5 * MS)), ..Settings::default() });
    let out: Vec<u64> = play(&mut link, 50_000, MS, 100).into_iter().map(|(_, number)| number).collect();
    assert_eq!(out.len(), 50_000);
    assert_share(link.counts().reordered, 50_000, 0.1);
    let mut highest = 0;
    let overtaken = out
        .iter()
        .filter(|number| {
            let late = **number < highest;
            highest = highest.max(**number);
            late
        })
        .count() as u64;
    // All but those that nobody overtook because the five after them were held back too.
    assert!(overtaken <= link.counts().reordered && overtaken * 1000 >= link.counts().reordered * 995, "{overtaken}");
}

#[test]
fn the_shares_of_copies_and_of_flipped_bits_are_met() {
    let mut link = direction(Settings { duplicate: Some(Share(0.05)), corrupt: Some(Share(0.05)), ..Settings::default() });
    let (mut copies, mut flipped) = (0, 0);
    for number in 0..50_000u64 {
        let now = MS * u32::try_from(number).unwrap();
        link.enter(now, vec![0; 200]);
        let mut came = 0;
        let mut damaged = false;
        while let Some(packet) = link.leave(now) {
            came += 1;
            let bits: u32 = packet.iter().map(|byte| byte.count_ones()).sum();
            assert!(bits <= 1 && packet.len() == 200);
            damaged = bits == 1;
        }
        copies += came - 1;
        flipped += u64::from(damaged);
    }
    assert_share(copies, 50_000, 0.05);
    assert_share(flipped, 50_000, 0.05);
    assert_eq!((copies, flipped), (link.counts().duplicated, link.counts().corrupted));
}

#[test]
fn packets_above_the_mtu_are_dropped_and_told() {
    let mut link = direction(Settings { mtu: Some(1280), ..Settings::default() });
    link.enter(Duration::ZERO, packet(0, 1280));
    link.enter(Duration::ZERO, packet(1, 1281));
    assert!(link.leave(Duration::ZERO).is_some());
    assert_eq!(link.leave(Duration::ZERO), None);
    assert_eq!(link.counts().too_large, 1);
}

#[test]
fn a_trace_is_played() {
    let trace = Trace::parse("0ms 12mbit 0% 10ms\n100ms 0bit 0% 10ms\n200ms 1.2mbit 100% 30ms\n").unwrap();
    let mut link = Direction::new(Settings::default(), Some(trace), seed());
    let out = play(&mut link, 30, 10 * MS, 1500);
    let at: Vec<u64> = out.iter().map(|(at, _)| at.as_millis() as u64).collect();
    // Till 100 ms 1 ms of transmission and 10 of delay. Then all wait, in a queue of two packets at a rate of nothing. At 200 ms the slow rate
    // begins, which takes 10 ms a packet and loses each. At 300 ms two are left, and the trace begins again.
    let mut expected: Vec<u64> = (0..10).map(|number| number * 10 + 11).collect();
    expected.extend([311, 312]);
    assert_eq!(at, expected);
    assert_eq!(link.counts().lost, 10);
    assert_eq!(link.counts().queue_dropped, 8);
}

#[test]
fn the_same_seed_gives_the_same_and_another_one_something_else() {
    let settings = Settings {
        rate: Some(Rate(Some(10_000_000))),
        delay: Some(Span(10 * MS)),
        jitter: Some(Span(10 * MS)),
        loss: Some(Share(0.05)),
        reorder: Some(Share(0.05)),
        duplicate: Some(Share(0.05)),
        ..Settings::default()
    };
    let seed = seed();
    let run = |seed| play(&mut Direction::new(settings.clone(), None, seed), 2000, MS, 1000);
    assert_eq!(run(seed), run(seed));
    assert_ne!(run(seed), run(seed.wrapping_add(1)));
}

#[test]
fn what_is_held_is_bounded() {
    let mut link = direction(Settings { delay: Some(Span(Duration::from_secs(3600))), ..Settings::default() });
    for number in 0..70_000 {
        link.enter(Duration::ZERO, packet(number, 64));
    }
    assert_eq!(link.counts().queue_dropped, 70_000 - MOST_HELD_PACKETS as u64);
    let mut link = direction(Settings { delay: Some(Span(Duration::from_secs(3600))), ..Settings::default() });
    for number in 0..1200 {
        link.enter(Duration::ZERO, packet(number, 60_000));
    }
    assert_eq!(link.counts().queue_dropped, 1200 - MOST_HELD_BYTES / 60_000);
}
