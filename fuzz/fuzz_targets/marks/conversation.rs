//! A conversation as the target `marks` reads it; the ordinary test of the corpus includes this file.
#![allow(clippy::unwrap_used)]

use std::time::Instant;

use armor_proto::connection::{Conversation, MAX_SAVED, Mark, mark_policy};

/// The mark at its end. One byte for the policy, then pieces, each behind a byte for its side (the highest bit: the server) and its length.
pub(crate) fn listen(input: &[u8]) -> Mark {
    let Some((first, mut rest)) = input.split_first() else { return Mark::default() };
    let name = ["request", "http", "resp", "turn", "stream"][usize::from(*first) % 5];
    let mut policy = mark_policy(name).unwrap();
    let (mut mark, mut said, mut answered, now) = (Mark::default(), Mark::default(), 0, Instant::now());
    while let Some((head, more)) = rest.split_first() {
        let (piece, after) = more.split_at(usize::from(head & 0x7f).min(more.len()));
        rest = after;
        let (c2s_end, s2c_received) = (said.c2s, said.s2c);
        let at = Conversation {
            mark,
            c2s_end,
            c2s_acked: c2s_end,
            c2s_answered: answered,
            s2c_received,
            s2c_waiting: 0,
            recovering: false,
            now,
        };
        let next = if head & 0x80 == 0 {
            said.c2s += piece.len() as u64;
            policy.client_spoke(&at, piece)
        } else {
            said.s2c += piece.len() as u64;
            answered = c2s_end;
            policy.server_answered(&at, piece)
        };
        if let Some(next) = next {
            assert!((mark.c2s..=said.c2s).contains(&next.c2s) && (s2c_received..=said.s2c).contains(&next.s2c));
            mark = next;
        }
        let mut state = Vec::new();
        policy.save(&mut state);
        assert!(state.len() <= MAX_SAVED);
        policy = mark_policy(name).unwrap();
        policy.restore(&state).unwrap();
    }
    let _ = policy.restore(input);
    mark
}
