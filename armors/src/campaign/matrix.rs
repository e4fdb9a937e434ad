//! What a campaign does: targets × faults × placements × policies, and why some combinations are left out.
//!
//! Invariant: every combination is either a cell or has a reason.

use std::fmt;

use serde::Serialize;

use super::talk::Talk;

macro_rules! named {
    ($(#[$meta:meta])* $name:ident { $($(#[$item:meta])* $variant:ident = $text:literal),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
        #[serde(rename_all = "kebab-case")]
        pub(crate) enum $name { $($(#[$item])* #[value(name = $text)] #[serde(rename = $text)] $variant),* }

        impl $name {
            pub(crate) const ALL: &[$name] = &[$($name::$variant),*];
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $($name::$variant => $text),* })
            }
        }
    };
}

named! {
    /// What a fault is injected into.
    Target {
        /// The server's process
        Server = "server",
        /// The daemon of the server's node
        Daemon = "daemon",
        /// The daemon of the clients' node
        ClientDaemon = "client-daemon",
        /// The Execution ARMOR that oversees the server
        Execution = "execution",
        /// The FTM
        Ftm = "ftm",
        /// The vault of the server's daemon
        Vault = "vault",
        /// The server's node with everything on it
        Node = "node",
        /// A link between two nodes
        Link = "link",
    }
}

named! {
    /// What is done to it.
    Fault {
        /// SIGKILL
        Kill = "kill",
        /// SIGSTOP
        Stop = "stop",
        /// SIGKILL to all processes of the node at once
        Loss = "loss",
        /// Nothing passes for a while
        Cut = "cut",
        /// The connection under the link is reset
        Reset = "reset",
        /// A bit is flipped in a frame
        Corrupt = "corrupt",
    }
}

named! {
    /// What a node is.
    Placement {
        /// A group of processes on this machine
        Groups = "groups",
        /// A network namespace with an interface of its own; needs root
        Namespaces = "namespaces",
    }
}

named! {
    /// What the clients and the server speak, and with it how connections recover.
    Policy {
        /// Two streams of bytes, policy "stream"
        Stream = "stream",
        /// HTTP/1.1, policy "request"
        Request = "request",
        /// HTTP with python3 -m http.server, a connection for each request, policy "request"
        Python = "python",
        /// The same with a standby of the server
        PythonStandby = "python-standby",
        /// Questions and answers, policy "turn"
        Turn = "turn",
        /// Two streams of bytes, policy "reconnect"
        Reconnect = "reconnect",
    }
}

impl Target {
    /// Whether running connections go on while it is away, so that its own return is what is measured.
    pub(crate) fn clients_do_not_notice(self) -> bool {
        matches!(self, Target::Ftm | Target::Vault)
    }
}

impl Policy {
    pub(crate) fn talk(self) -> Talk {
        match self {
            Policy::Stream | Policy::Reconnect => Talk::Flow,
            Policy::Request => Talk::Http,
            Policy::Python | Policy::PythonStandby => Talk::Files,
            Policy::Turn => Talk::Turn,
        }
    }

    /// Whether the server is Python's.
    pub(crate) fn is_python(self) -> bool {
        self.talk() == Talk::Files
    }

    /// As a service file has it.
    pub(crate) fn in_service(self) -> &'static str {
        match self {
            Policy::Stream => "stream",
            Policy::Request | Policy::Python | Policy::PythonStandby => "request",
            Policy::Turn => "turn",
            Policy::Reconnect => "reconnect",
        }
    }
}

/// One combination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Cell {
    pub(crate) target: Target,
    pub(crate) fault: Fault,
    pub(crate) placement: Placement,
    pub(crate) policy: Policy,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cell { target, fault, placement, policy } = self;
        write!(f, "{target}-{fault}-{placement}-{policy}")
    }
}

impl Cell {
    /// Why it is left out, if so.
    pub(crate) fn why_not(&self) -> Option<&'static str> {
        let Cell { target, fault, placement, policy } = *self;
        match (target, fault) {
            (Target::Link, Fault::Kill | Fault::Stop | Fault::Loss) => return Some("a link is no process"),
            (Target::Link, _) => {}
            (_, Fault::Cut | Fault::Reset | Fault::Corrupt) => return Some("only a link can be cut, reset or corrupted"),
            (Target::Node, Fault::Loss) => {}
            (Target::Node, _) => return Some("of a node only the loss as a whole is injected; its processes are targets of their own"),
            (_, Fault::Loss) => return Some("only a node can be lost"),
            _ => {}
        }
        if policy == Policy::Reconnect && matches!(target, Target::Server | Target::Node) {
            return Some("policy reconnect gives up, by its meaning, what the dead process had read");
        }
        if policy.is_python() && (target, fault) != (Target::Server, Fault::Kill) {
            return Some("python3 http.server is there to be compared with its own start");
        }
        if placement == Placement::Namespaces && matches!(target, Target::Execution | Target::Vault) {
            return Some("what is between processes of one node is the same in every placement");
        }
        if placement == Placement::Namespaces && fault == Fault::Stop {
            return Some("what stops is found on its own node, the same in every placement");
        }
        if placement == Placement::Namespaces && matches!(fault, Fault::Reset | Fault::Corrupt) {
            return Some("resets and flipped bits are made by a relay between processes of this machine");
        }
        None
    }

    /// Whether the environment is not the same afterwards.
    pub(crate) fn uses_up_environment(&self) -> bool {
        self.target == Target::Node
    }

    /// Whether the links of nodes pass through relays of the campaign.
    pub(crate) fn needs_relays(&self) -> bool {
        self.target == Target::Link && self.placement == Placement::Groups
    }

    /// One in so many of the wanted runs: others take too long.
    fn share(&self) -> u32 {
        match (self.target, self.fault) {
            (_, Fault::Stop) => 20,
            (Target::Node | Target::Link, _) => 5,
            _ => 1,
        }
    }
}

/// What was asked for; nothing stands for everything.
#[derive(Debug, Clone, Default)]
pub(crate) struct Choice {
    pub(crate) targets: Vec<Target>,
    pub(crate) faults: Vec<Fault>,
    pub(crate) placements: Vec<Placement>,
    pub(crate) policies: Vec<Policy>,
}

/// A cell and how often it is run, or why it is left out.
#[derive(Clone, Copy)]
pub(crate) struct Planned {
    pub(crate) cell: Cell,
    pub(crate) runs: Result<u32, &'static str>,
}

/// All combinations of what was asked for. `runs` are those of a target and fault, shared out among placements and policies.
pub(crate) fn plan(choice: &Choice, runs: u32) -> Vec<Planned> {
    fn chosen<T: PartialEq>(asked: &[T], value: &T) -> bool {
        asked.is_empty() || asked.contains(value)
    }
    let mut planned = Vec::new();
    for &target in Target::ALL.iter().filter(|target| chosen(&choice.targets, target)) {
        for &fault in Fault::ALL.iter().filter(|fault| chosen(&choice.faults, fault)) {
            let mut cells = Vec::new();
            for &placement in Placement::ALL.iter().filter(|placement| chosen(&choice.placements, placement)) {
                for &policy in Policy::ALL.iter().filter(|policy| chosen(&choice.policies, policy)) {
                    cells.push(Cell { target, fault, placement, policy });
                }
            }
            let run = u32::try_from(cells.iter().filter(|cell| cell.why_not().is_none()).count()).unwrap_or(u32::MAX);
            planned.extend(cells.into_iter().map(|cell| {
                let share = || (runs.div_ceil(cell.share()).div_ceil(run.max(1))).max(1);
                Planned { cell, runs: cell.why_not().map_or_else(|| Ok(share()), Err) }
            }));
        }
    }
    planned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_cells_and_every_fault_is_injected() {
        let all = plan(&Choice { placements: vec![Placement::Groups], ..Choice::default() }, 1000);
        let run: Vec<_> = all.iter().filter_map(|planned| Some((planned.cell, planned.runs.ok()?))).collect();
        for &target in Target::ALL {
            assert!(run.iter().any(|(cell, _)| cell.target == target), "{target}");
        }
        for &fault in Fault::ALL {
            assert!(run.iter().any(|(cell, _)| cell.fault == fault), "{fault}");
        }
        for target in [Target::Server, Target::Daemon, Target::Execution, Target::Ftm, Target::Vault] {
            let kills: u32 = run.iter().filter(|(cell, _)| (cell.target, cell.fault) == (target, Fault::Kill)).map(|(_, runs)| runs).sum();
            assert!((1000..1010).contains(&kills), "{target}: {kills}");
        }
    }

    #[test]
    fn what_was_asked_for_alone_is_planned() {
        let choice = Choice { targets: vec![Target::Link], policies: vec![Policy::Stream], ..Choice::default() };
        let all = plan(&choice, 1);
        assert_eq!(all.len(), Fault::ALL.len() * Placement::ALL.len());
        assert!(
            all.iter().all(|planned| planned.cell.target == Target::Link
                && planned.runs.is_ok_and(|runs| runs == 1) == planned.cell.why_not().is_none())
        );
    }
}
