//! What is measured: its name, its unit, and what varies.

use serde::{Deserialize, Serialize};

/// One kind of figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Metric {
    RoundTrip,
    ExchangeCpu,
    Init,
    Bind,
    Connect,
    Close,
    ShortConnection,
    Download,
    DownloadCpu,
    Upload,
    UploadCpu,
    LoggedUpload,
    LoggedUploadCpu,
    ConnectionRate,
    Requests,
    RequestCpu,
    UnderLoadP50,
    UnderLoadP99,
    UnderLoadP999,
    Memory,
    RoundTripBeside,
}

/// Where the processes of a row may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Pinning {
    /// All on the same core.
    OneCore,
    /// Where the kernel puts them.
    Free,
}

impl Pinning {
    pub(crate) fn title(self) -> &'static str {
        match self {
            Pinning::OneCore => "all processes on one core",
            Pinning::Free => "not pinned",
        }
    }
}

impl Metric {
    pub(crate) const ALL: [Metric; 21] = [
        Metric::RoundTrip,
        Metric::ExchangeCpu,
        Metric::Init,
        Metric::Bind,
        Metric::Connect,
        Metric::Close,
        Metric::ShortConnection,
        Metric::Download,
        Metric::DownloadCpu,
        Metric::Upload,
        Metric::UploadCpu,
        Metric::LoggedUpload,
        Metric::LoggedUploadCpu,
        Metric::ConnectionRate,
        Metric::Requests,
        Metric::RequestCpu,
        Metric::UnderLoadP50,
        Metric::UnderLoadP99,
        Metric::UnderLoadP999,
        Metric::Memory,
        Metric::RoundTripBeside,
    ];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Metric::RoundTrip => "Round trip by packet size (thesis table 6.1)",
            Metric::ExchangeCpu => "CPU of a round trip by packet size: all processes of the row",
            Metric::Init => "init: the call socket (thesis table 6.2)",
            Metric::Bind => "bind: the calls bind and listen (thesis table 6.2)",
            Metric::Connect => "connect (thesis table 6.3)",
            Metric::Close => "close (thesis table 6.3)",
            Metric::ShortConnection => "Connect, first byte and close",
            Metric::Download => "Bulk, server to client",
            Metric::DownloadCpu => "CPU of bulk, server to client: all processes of the row",
            Metric::Upload => "Bulk, client to server (ARMOR: policy reconnect, which keeps nothing to replay)",
            Metric::UploadCpu => "CPU of bulk, client to server: all processes of the row",
            Metric::LoggedUpload => "Bulk, client to server, kept for replay as one request (ARMOR: policy request, the default)",
            Metric::LoggedUploadCpu => "CPU of bulk, client to server, kept for replay",
            Metric::ConnectionRate => "Short connections, 8 clients side by side",
            Metric::Requests => "Requests of 512 bytes, 32 sessions",
            Metric::RequestCpu => "CPU of a request, 32 sessions: all processes of the row",
            Metric::UnderLoadP50 => "Round trip of 512 bytes with 32 busy sessions, median",
            Metric::UnderLoadP99 => "Round trip of 512 bytes with 32 busy sessions, 99th percentile",
            Metric::UnderLoadP999 => "Round trip of 512 bytes with 32 busy sessions, 99.9th percentile",
            Metric::Memory => "Memory of proxies or ARMORs per open idle connection, by number of connections",
            Metric::RoundTripBeside => "Round trip of 512 bytes beside idle connections, by their number",
        }
    }

    pub(crate) fn unit(self) -> &'static str {
        match self {
            Metric::Download | Metric::Upload | Metric::LoggedUpload => "GiB/s",
            Metric::DownloadCpu | Metric::UploadCpu | Metric::LoggedUploadCpu => "CPU s/GiB",
            Metric::ConnectionRate | Metric::Requests => "1/s",
            Metric::Memory => "KiB",
            _ => "µs",
        }
    }

    /// The parameter as a heading; nothing for figures without one.
    pub(crate) fn parameter(self, value: u64) -> String {
        match self {
            Metric::RoundTrip | Metric::ExchangeCpu if value >= 4096 => format!("{} KB", value / 1024),
            Metric::RoundTrip | Metric::ExchangeCpu => format!("{value} B"),
            Metric::Memory | Metric::RoundTripBeside => value.to_string(),
            _ => String::new(),
        }
    }
}
