//! Figures of the thesis, to stand beside those of the bench: Sun workstations of 2002 on Ethernet of 100 Mbit/s, ARMORs on four of them.

/// Table 6.1, round trip in µs: packet size, direct, dual proxy, ARMOR.
pub(super) const ROUND_TRIP: [(u64, f64, f64, f64); 6] = [
    (32, 816.0, 2218.0, 33526.0),
    (64, 967.0, 2601.0, 33314.0),
    (128, 1075.0, 2934.0, 33549.0),
    (512, 1756.0, 3877.0, 32716.0),
    (1024, 2708.0, 5142.0, 35660.0),
    (2048, 4653.0, 6801.0, 39889.0),
];

/// Tables 6.2, 6.3 and 6.5, in µs: what, dual proxy, daemons, Execution ARMORs.
pub(super) const CALLS: [(&str, Option<f64>, f64, Option<f64>); 5] = [
    ("init", Some(368.0), 424.0, Some(467.0)),
    ("bind", Some(178.0), 7545.0, Some(7621.0)),
    ("connect", Some(10560.0), 31339.0, Some(75659.0)),
    ("close", Some(275.0), 273.0, None),
    ("round trip, 512 B", Some(3877.0), 32716.0, Some(514_885.0)),
];

/// Tables 6.4 and 6.6, in ms: what failed, without and with an Execution ARMOR.
pub(super) const RECOVERY: [(&str, Option<f64>, f64); 4] =
    [("server", Some(10.0), 25.0), ("execution", None, 346.0), ("daemon", Some(135.0), 1513.0), ("node", Some(145.0), 1546.0)];
