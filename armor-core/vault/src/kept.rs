//! The descriptors that are kept, per owner and key.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use crate::message::BATCH;

/// Most owners; one that has nothing makes room.
const MAX_OWNERS: usize = 1024;
/// Most descriptors of one owner.
const MAX_KEYS: usize = 262_144;

pub(crate) struct Kept {
    owners: BTreeMap<String, Owner>,
    count: usize,
    /// Most of all owners together.
    most: usize,
}

#[derive(Default)]
struct Owner {
    descriptors: BTreeMap<String, OwnedFd>,
    /// Exits up to this sequence were dealt with.
    heard: u64,
}

impl Kept {
    pub(crate) fn new(most: usize) -> Kept {
        Kept { owners: BTreeMap::new(), count: 0, most }
    }

    /// Knows the owner from now on.
    pub(crate) fn hello(&mut self, name: &str, connected: impl Fn(&str) -> bool) -> Result<(), String> {
        if !self.owners.contains_key(name) && self.owners.len() >= MAX_OWNERS {
            let idle = self.owners.iter().find(|(name, owner)| owner.descriptors.is_empty() && !connected(name));
            let idle = idle.map(|(name, _)| name.clone()).ok_or(format!("there are {MAX_OWNERS} owners already"))?;
            self.owners.remove(&idle);
        }
        self.owners.entry(name.to_owned()).or_default();
        Ok(())
    }

    pub(crate) fn keep(&mut self, owner: &str, key: String, descriptor: OwnedFd) -> Result<(), String> {
        let descriptors = &mut self.owners.entry(owner.to_owned()).or_default().descriptors;
        if !descriptors.contains_key(&key) {
            if descriptors.len() >= MAX_KEYS {
                return Err(format!("{owner} has {MAX_KEYS} descriptors here already"));
            }
            if self.count >= self.most {
                return Err(format!("{} descriptors are kept already; raise the hard limit of open files (ulimit -Hn)", self.most));
            }
            self.count += 1;
        }
        descriptors.insert(key, descriptor);
        Ok(())
    }

    pub(crate) fn forget(&mut self, owner: &str, key: &str) {
        let known = self.owners.get_mut(owner).and_then(|owner| owner.descriptors.remove(key));
        self.count -= usize::from(known.is_some());
    }

    /// Forgets all of an owner.
    pub(crate) fn forget_all(&mut self, owner: &str) {
        let gone = self.owners.get_mut(owner).map(|owner| std::mem::take(&mut owner.descriptors)).unwrap_or_default();
        self.count -= gone.len();
    }

    /// The next descriptors in the order of their keys.
    pub(crate) fn after(&self, owner: &str, key: &str) -> (Vec<String>, Vec<BorrowedFd<'_>>) {
        let range = (Bound::Excluded(key), Bound::Unbounded);
        let rest = self.owners.get(owner).into_iter().flat_map(|owner| owner.descriptors.range::<str, _>(range));
        rest.take(BATCH).map(|(key, descriptor)| (key.clone(), descriptor.as_fd())).unzip()
    }

    pub(crate) fn heard(&self, owner: &str) -> u64 {
        self.owners.get(owner).map_or(0, |owner| owner.heard)
    }

    pub(crate) fn set_heard(&mut self, owner: &str, sequence: u64) {
        if let Some(owner) = self.owners.get_mut(owner) {
            owner.heard = owner.heard.max(sequence);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn descriptor() -> OwnedFd {
        std::io::stderr().as_fd().try_clone_to_owned().unwrap()
    }

    #[test]
    fn bounds_refuse_what_is_new_and_leave_what_is_there() {
        let mut kept = Kept::new(2);
        kept.hello("a", |_| true).unwrap();
        kept.keep("a", "1".into(), descriptor()).unwrap();
        kept.keep("a", "2".into(), descriptor()).unwrap();
        assert!(kept.keep("b", "1".into(), descriptor()).unwrap_err().contains("ulimit"));
        kept.keep("a", "1".into(), descriptor()).unwrap();
        assert_eq!(kept.after("a", "").0, ["1", "2"]);
        kept.forget("a", "1");
        kept.forget("a", "1");
        kept.forget("nobody", "1");
        kept.keep("b", "1".into(), descriptor()).unwrap();
        kept.forget_all("a");
        assert_eq!(kept.after("a", "").0, [""; 0]);
        assert_eq!(kept.after("b", "").0, ["1"]);
        assert_eq!(kept.count, 1);
    }

    #[test]
    fn an_owner_that_has_nothing_and_is_gone_makes_room() {
        let mut kept = Kept::new(10);
        for number in 0..MAX_OWNERS {
            kept.hello(&number.to_string(), |_| true).unwrap();
        }
        assert!(kept.hello("one more", |_| true).unwrap_err().contains("owners"));
        kept.keep("7", "key".into(), descriptor()).unwrap();
        assert!(kept.hello("one more", |name| name != "7").is_err());
        kept.hello("one more", |name| name != "8").unwrap();
        assert!(!kept.owners.contains_key("8") && kept.owners.contains_key("7"));
    }
}
