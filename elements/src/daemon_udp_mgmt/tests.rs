#![allow(clippy::expect_used, clippy::panic)]

use super::*;

fn config(text: &str) -> Result<Config, String> {
    toml::from_str(text).map_err(|error| error.to_string())
}

#[test]
fn keys_out_of_bounds_are_errors_that_name_the_bounds() {
    assert!(config("listen = \"127.0.0.1:0\"").is_ok());
    let error = config("listen = \"127.0.0.1:0\"\nmax_datagram = 576").err().unwrap_or_default();
    assert!(error.contains("1200"), "{error}");
    let error = config("listen = \"127.0.0.1:0\"\nkeep_alive_ms = 1").err().unwrap_or_default();
    assert!(error.contains("60000"), "{error}");
    let error = config("listen = \"10.0.0.1:0\"").err().unwrap_or_default();
    assert!(error.contains("daemon_udp_mgmt") && error.contains("insecure = true"), "{error}");
}

#[test]
fn a_port_in_use_is_an_error_that_says_what_to_do() {
    let taken = UdpSocket::bind("127.0.0.1:0").expect("works");
    let reason = datagrams::bind(taken.local_addr().expect("works"), "daemon_udp_mgmt.listen").err().unwrap_or_default();
    assert!(reason.contains("in use") && reason.contains("daemon_udp_mgmt.listen"), "{reason}");
}
