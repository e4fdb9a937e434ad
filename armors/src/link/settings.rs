//! What a link is told to be like, in the words of the command line, of link files and of traces: `100mbit`, `10ms`, `1%`.
//!
//! The same text is read everywhere: by clap, from TOML, and from the control socket.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Values beyond are refused: they are slips, and arithmetic on them would overflow.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);
const FASTEST_BITS: f64 = 1e12;
const MOST_BLACKOUTS: usize = 10_000;

/// Text that is not what it should be.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("{text:?} is no {what}: {expected}")]
pub(crate) struct Unreadable {
    text: String,
    what: &'static str,
    expected: &'static str,
}

fn unreadable(text: &str, what: &'static str, expected: &'static str) -> Unreadable {
    Unreadable { text: text.chars().take(80).collect(), what, expected }
}

/// A number and its unit.
fn measured(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let unit = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..unit].parse().ok()?;
    number.is_finite().then_some((number, text[unit..].trim()))
}

/// Reads itself from text and writes itself as such, for serde.
macro_rules! as_text {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = Unreadable;
            fn try_from(text: String) -> Result<Self, Unreadable> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.to_string()
            }
        }
    };
}

/// A span of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Span(pub(crate) Duration);
as_text!(Span);

impl FromStr for Span {
    type Err = Unreadable;
    fn from_str(text: &str) -> Result<Span, Unreadable> {
        let wrong = || unreadable(text, "time", "say it like 10ms, 500us or 1.5s; at most 7 days");
        let (number, unit) = measured(text).ok_or_else(wrong)?;
        let seconds = match unit {
            "s" => number,
            "ms" => number / 1e3,
            "us" => number / 1e6,
            "min" => number * 60.0,
            "" if number == 0.0 => 0.0,
            _ => return Err(wrong()),
        };
        let span = Duration::try_from_secs_f64(seconds).map_err(|_| wrong())?;
        if span > LONGEST { Err(wrong()) } else { Ok(Span(span)) }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}us", self.0.as_nanos() as f64 / 1e3)
    }
}

/// Bits per second, of whole IP packets. 0: nothing passes until the rate changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Rate(pub(crate) Option<u64>);
as_text!(Rate);

impl FromStr for Rate {
    type Err = Unreadable;
    fn from_str(text: &str) -> Result<Rate, Unreadable> {
        let wrong = || unreadable(text, "rate", "say it like 100mbit, 256kbit, 1gbit or unlimited");
        if text.trim() == "unlimited" {
            return Ok(Rate(None));
        }
        let (number, unit) = measured(text).ok_or_else(wrong)?;
        let factor = match unit {
            "bit" => 1.0,
            "kbit" => 1e3,
            "mbit" => 1e6,
            "gbit" => 1e9,
            "" if number == 0.0 => 1.0,
            _ => return Err(wrong()),
        };
        let bits = number * factor;
        if bits > FASTEST_BITS { Err(wrong()) } else { Ok(Rate(Some(bits.round() as u64))) }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(bits) => write!(f, "{bits}bit"),
            None => f.write_str("unlimited"),
        }
    }
}

/// A share of all packets, 0 to 1; written as per cent.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Share(pub(crate) f64);
as_text!(Share);

impl FromStr for Share {
    type Err = Unreadable;
    fn from_str(text: &str) -> Result<Share, Unreadable> {
        let wrong = || unreadable(text, "share", "say it like 1% or 0.5%, from 0% to 100%");
        match measured(text).ok_or_else(wrong)? {
            (number, "%") if number <= 100.0 => Ok(Share(number / 100.0)),
            (0.0, "") => Ok(Share(0.0)),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0 * 100.0)
    }
}

/// How much may wait for transmission; what comes on top is dropped (drop-tail).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum Queue {
    Bytes(u64),
    /// What the present rate carries in this time, and two full packets at least.
    Span(Duration),
}
as_text!(Queue);

impl FromStr for Queue {
    type Err = Unreadable;
    fn from_str(text: &str) -> Result<Queue, Unreadable> {
        let wrong = || unreadable(text, "queue", "say it in bytes like 64kb or 1500b, or in time like 100ms");
        let (number, unit) = measured(text).ok_or_else(wrong)?;
        match unit {
            "b" if number <= 1e9 => Ok(Queue::Bytes(number as u64)),
            "kb" if number <= 1e6 => Ok(Queue::Bytes((number * 1e3) as u64)),
            "mb" if number <= 1e3 => Ok(Queue::Bytes((number * 1e6) as u64)),
            _ => text.parse::<Span>().map(|span| Queue::Span(span.0)).map_err(|_| wrong()),
        }
    }
}

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Queue::Bytes(bytes) => write!(f, "{bytes}b"),
            Queue::Span(span) => Span(*span).fmt(f),
        }
    }
}

/// Bursty loss by the chain of Gilbert and Elliott: a good and a bad state, and per packet a chance to change over, taken
/// before the packet is judged. Bursts of the bad state have a mean length of 1 / `to_good` packets, and `to_bad` / (`to_bad` + `to_good`) of
/// all packets meet it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Bursts {
    pub(crate) to_bad: f64,
    pub(crate) to_good: f64,
    /// Share of packets that is lost in the bad state.
    pub(crate) bad_loss: f64,
    /// The same in the good state.
    pub(crate) good_loss: f64,
}
as_text!(Bursts);

impl FromStr for Bursts {
    type Err = Unreadable;
    fn from_str(text: &str) -> Result<Bursts, Unreadable> {
        let wrong = || unreadable(text, "bursty loss", "say TO_BAD,TO_GOOD[,LOSS_IN_BAD[,LOSS_IN_GOOD]] like 1%,25% or 0.5%,10%,90%,1%");
        let shares: Vec<f64> =
            text.split(',').map(|share| share.parse::<Share>().map(|share| share.0)).collect::<Result<_, _>>().map_err(|_| wrong())?;
        let [to_bad, to_good, rest @ ..] = &shares[..] else { return Err(wrong()) };
        if rest.len() > 2 || (*to_good == 0.0 && *to_bad > 0.0) {
            return Err(wrong());
        }
        let bad_loss = rest.first().copied().unwrap_or(1.0);
        Ok(Bursts { to_bad: *to_bad, to_good: *to_good, bad_loss, good_loss: rest.get(1).copied().unwrap_or(0.0) })
    }
}

impl fmt::Display for Bursts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Bursts { to_bad, to_good, bad_loss, good_loss } = *self;
        write!(f, "{},{},{},{}", Share(to_bad), Share(to_good), Share(bad_loss), Share(good_loss))
    }
}

/// When the link is dark, in time since its start: `10s+2s` (at 10 s for 2 s), several with commas.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Blackouts(pub(crate) Vec<(Duration, Duration)>);
as_text!(Blackouts);

impl FromStr for Blackouts {
    type Err = Unreadable;
    fn from_str(text: &str) -> Result<Blackouts, Unreadable> {
        let wrong = || unreadable(text, "blackout schedule", "say START+LENGTH like 10s+2s, several with commas, or none");
        if text.trim() == "none" {
            return Ok(Blackouts::default());
        }
        let one = |text: &str| {
            let (start, length) = text.split_once('+')?;
            Some((start.parse::<Span>().ok()?.0, length.parse::<Span>().ok()?.0))
        };
        let all: Vec<_> = text.split(',').take(MOST_BLACKOUTS + 1).map(one).collect::<Option<_>>().ok_or_else(wrong)?;
        if all.len() > MOST_BLACKOUTS { Err(wrong()) } else { Ok(Blackouts(all)) }
    }
}

impl fmt::Display for Blackouts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        let all: Vec<_> = self.0.iter().map(|(start, length)| format!("{}+{}", Span(*start), Span(*length))).collect();
        f.write_str(&all.join(","))
    }
}

/// What is said about a direction of a link; what is absent stays as it is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// Bits per second of IP packets: 100mbit, 256kbit, unlimited [default: unlimited]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rate: Option<Rate>,
    /// How much waits for transmission before packets are dropped: 64kb, or 100ms at the present rate [default: 100ms]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) queue: Option<Queue>,
    /// One-way delay: 10ms
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) delay: Option<Span>,
    /// More delay, evenly distributed from 0 to this; packets stay in order
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) jitter: Option<Span>,
    /// Share of packets that is lost, each by itself: 1%
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) loss: Option<Share>,
    /// Bursty loss (Gilbert-Elliott): TO_BAD,TO_GOOD per packet and, if not 100% and 0%, LOSS_IN_BAD,LOSS_IN_GOOD: 1%,25%
    #[arg(long, value_name = "CHAIN")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) burst_loss: Option<Bursts>,
    /// Share of packets that is held back by --reorder-by, so that others overtake them
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reorder: Option<Share>,
    /// How long such packets are held back [default: 5ms]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reorder_by: Option<Span>,
    /// Share of packets that comes twice
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) duplicate: Option<Share>,
    /// Share of packets in which one bit is flipped; checksums are left as they were
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) corrupt: Option<Share>,
    /// Larger IP packets are dropped without a word (a black hole for path MTU discovery)
    #[arg(long, value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mtu: Option<usize>,
    /// When the link is dark, since its start: 10s+2s, several with commas, or none
    #[arg(long, value_name = "SCHEDULE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) blackout: Option<Blackouts>,
}

impl Settings {
    /// These, and where they are silent, `base`.
    pub(crate) fn over(self, base: Settings) -> Settings {
        Settings {
            rate: self.rate.or(base.rate),
            queue: self.queue.or(base.queue),
            delay: self.delay.or(base.delay),
            jitter: self.jitter.or(base.jitter),
            loss: self.loss.or(base.loss),
            burst_loss: self.burst_loss.or(base.burst_loss),
            reorder: self.reorder.or(base.reorder),
            reorder_by: self.reorder_by.or(base.reorder_by),
            duplicate: self.duplicate.or(base.duplicate),
            corrupt: self.corrupt.or(base.corrupt),
            mtu: self.mtu.or(base.mtu),
            blackout: self.blackout.or(base.blackout),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn text_is_read_and_written_back() {
        assert_eq!("100mbit".parse(), Ok(Rate(Some(100_000_000))));
        assert_eq!("1.5s".parse(), Ok(Span(Duration::from_millis(1500))));
        assert_eq!("64kb".parse(), Ok(Queue::Bytes(64_000)));
        assert_eq!("100ms".parse(), Ok(Queue::Span(Duration::from_millis(100))));
        assert_eq!("1%,25%".parse(), Ok(Bursts { to_bad: 0.01, to_good: 0.25, bad_loss: 1.0, good_loss: 0.0 }));
        for text in ["10s+2s", "none", "1s+1s,5s+100ms"] {
            let blackouts: Blackouts = text.parse().unwrap();
            assert_eq!(blackouts.to_string().parse(), Ok(blackouts));
        }
        let settings = Settings {
            rate: Some(Rate(None)),
            loss: Some(Share(0.02)),
            delay: Some(Span(Duration::from_micros(1234))),
            burst_loss: Some(Bursts { to_bad: 0.5, to_good: 0.25, bad_loss: 1.0, good_loss: 0.0 }),
            ..Settings::default()
        };
        let text = serde_json::to_string(&settings).unwrap();
        assert_eq!(serde_json::from_str::<Settings>(&text).unwrap(), settings, "{text}");
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "x", "-1ms", "1e9s", "10", "999999999s", "ms", "1..2s", "NaN", "inf"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
        for text in ["101%", "-1%", "1", "%", "0.1.%"] {
            assert!(text.parse::<Share>().is_err(), "{text}");
        }
        for text in ["1%", "1%,2%,3%,4%,5%", "1%,0%", ","] {
            assert!(text.parse::<Bursts>().is_err(), "{text}");
        }
        for text in ["100", "100mb", "9999999gbit"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }
}
