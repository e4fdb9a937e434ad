//! How ARMORs of different nodes are linked: over TCP, over UDP, or over both.

use crate::environment::ArmorDirectory;

/// The elements that make links.
pub(crate) const ELEMENTS: [&str; 2] = ["daemon_tcp_mgmt", "daemon_udp_mgmt"];

/// What links are made of.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Transport {
    /// For networks by wire.
    #[default]
    Tcp,
    /// For radio links and nodes that move: links outlive outages and changes of address.
    Udp,
    /// For the FTM, and nodes between networks of the two kinds: messages are passed on.
    Both,
}

impl Transport {
    /// The elements that make the links.
    pub(crate) fn elements(self) -> &'static [&'static str] {
        match self {
            Transport::Tcp => &["daemon_tcp_mgmt"],
            Transport::Udp => &["daemon_udp_mgmt"],
            Transport::Both => &ELEMENTS,
        }
    }

    /// The built-in composition of that kind, `ftm` or `daemon`, with these links.
    pub(crate) fn composition(self, kind: &str) -> String {
        match self {
            Transport::Tcp => kind.to_owned(),
            Transport::Udp => format!("{kind}-udp"),
            Transport::Both => format!("{kind}-both"),
        }
    }

    /// The setting `key` of each element, as for `armor start --set`.
    pub(crate) fn settings(self, key: &str, value: impl Fn(&str) -> String) -> Vec<String> {
        self.elements().iter().map(|element| format!("{element}.{key}={}", value(element))).collect()
    }

    /// Where an ARMOR with these links is reached, by element.
    pub(crate) fn addresses(self, directory: &ArmorDirectory) -> Option<Vec<(&'static str, String)>> {
        let address = |element: &&'static str| Some((*element, directory.link_address(element)?));
        self.elements().iter().map(address).collect()
    }
}

/// The state of the elements that make links, in an ARMOR's status.
pub(crate) fn links<'a>(element: impl Fn(&str) -> &'a serde_json::Value) -> Vec<&'a serde_json::Value> {
    ELEMENTS.iter().map(|name| element(name)).filter(|state| !state.is_null()).collect()
}
