//! Marks in RESP, the protocol of Redis: after which answers they lie, and what the connection remembers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod mark_talk;

use mark_talk::{Exchange, Talk, expected, interleave, pieces};
use proptest::prelude::*;

/// A command as clients send it.
fn command(words: &str) -> Vec<u8> {
    let words: Vec<&str> = words.split(' ').collect();
    let arguments = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len()));
    format!("*{}\r\n{}", words.len(), arguments.collect::<String>()).into_bytes()
}

/// A conversation that begins with a complete exchange.
fn begun() -> Talk {
    let mut talk = Talk::new("request");
    talk.client(command("INCR n")).server(":1\r\n");
    assert!(talk.is_at_present());
    talk
}

#[test]
fn the_mark_moves_with_the_last_byte_of_an_answer_and_not_before() {
    let mut talk = begun();
    let mark = talk.mark;
    talk.client(command("GET key")).server("$5\r\nhello\r");
    assert_eq!(talk.mark, mark);
    talk.server("\n");
    assert!(talk.is_at_present());
}

#[test]
fn replies_of_all_types_are_one_answer_each() {
    for reply in [
        "+PONG\r\n",
        "-ERR unknown command\r\n",
        ":-17\r\n",
        "$-1\r\n",
        "$0\r\n\r\n",
        "$12\r\nwith\r\nbreaks\r\n",
        "*-1\r\n",
        "*0\r\n",
        "*2\r\n$1\r\na\r\n*3\r\n:1\r\n*0\r\n*2\r\n+x\r\n-no\r\n",
        "_\r\n",
        "#t\r\n",
        ",1.5e3\r\n",
        ",inf\r\n",
        "(3492890328409238509324850943850943825024385\r\n",
        "!21\r\nSYNTAX invalid syntax\r\n",
        "=15\r\ntxt:Some string\r\n",
        "%2\r\n+a\r\n:1\r\n+b\r\n*2\r\n#f\r\n_\r\n",
        "~3\r\n+a\r\n~1\r\n:1\r\n%0\r\n",
        "|1\r\n+ttl\r\n:3600\r\n*2\r\n:1\r\n:2\r\n",
        "*3\r\n:1\r\n|1\r\n+ttl\r\n*1\r\n:3\r\n:2\r\n:3\r\n",
        "|0\r\n:1\r\n",
        "$?\r\n;4\r\nHell\r\n;6\r\no\r\nwor\r\n;0\r\n",
        "*?\r\n:1\r\n*2\r\n:2\r\n:3\r\n%?\r\n+a\r\n$?\r\n;1\r\nx\r\n;0\r\n.\r\n.\r\n",
        ">3\r\n+message\r\n+somewhere\r\n+something\r\n:1\r\n",
    ] {
        let mut talk = begun();
        talk.client(command("EVAL something")).server(&reply[..reply.len() - 1]);
        assert!(!talk.is_at_present(), "{reply:?} is not complete");
        talk.server("\n");
        assert!(talk.is_at_present(), "{reply:?}");
        talk.client(command("INCR n")).server(":2\r\n");
        assert!(talk.is_at_present(), "what comes after {reply:?}");
    }
}

#[test]
fn commands_are_arrays_or_lines_and_nothing_may_be_asked_for() {
    let mut talk = Talk::new("resp");
    talk.client("PING\r\n").server("+PONG\r\n");
    assert!(talk.is_at_present());
    talk.client("\r\n*0\r\n*-1\r\n   \n get key\n").server("$-1\r\n");
    assert!(talk.is_at_present());
    talk.client("*2\r\n$3\r\nGET\r\n$0\r\n\r\n").server("$-1\r\n");
    assert!(talk.is_at_present());
    talk.client(format!("SET {} value\r\n", "k".repeat(3000))).server("+OK\r\n");
    assert!(talk.is_at_present());
    assert_eq!(talk.prologue().0, "");
}

#[test]
fn pipelined_commands_are_marked_one_by_one_also_after_the_armor_s_death() {
    let incr = command("INCR n");
    let mut talk = begun();
    let before = talk.mark.c2s;
    talk.client(incr.repeat(1000));
    for answers in 1..=500u64 {
        talk.server(":2\r\n");
        assert_eq!(talk.mark.c2s, before + answers * incr.len() as u64);
    }
    talk.save_and_restore();
    let before = talk.mark.c2s;
    for answers in 1..=15u64 {
        talk.server(":2\r\n");
        assert_eq!(talk.mark.c2s, before + answers * incr.len() as u64);
    }
    talk.server(":3\r\n".repeat(484));
    assert_eq!(talk.mark.c2s, before + 15 * incr.len() as u64);
    talk.server(":3\r\n");
    assert!(talk.is_at_present());
}

#[test]
fn a_transaction_is_taken_up_as_a_whole() {
    let mut talk = begun();
    let mark = talk.mark;
    talk.client(command("MULTI")).server("+OK\r\n").client(command("INCR n")).server("+QUEUED\r\n");
    talk.client(command("NOSUCH")).server("-ERR unknown command\r\n");
    assert_eq!(talk.mark, mark);
    talk.client(command("EXEC")).server("-EXECABORT Transaction discarded because of previous errors.\r\n");
    assert!(talk.is_at_present());
    for end in ["*1\r\n:2\r\n", "*-1\r\n", "_\r\n"] {
        talk.client([command("MULTI"), command("INCR n"), command("EXEC")].concat());
        let mark = talk.mark;
        talk.server("+OK\r\n+QUEUED\r\n");
        assert_eq!(talk.mark, mark);
        talk.server(end);
        assert!(talk.is_at_present(), "{end:?}");
    }
    talk.client([command("MULTI"), command("DISCARD")].concat()).server("+OK\r\n+OK\r\n");
    assert!(talk.is_at_present());
}

#[test]
fn only_an_answer_that_says_so_opens_or_closes_a_transaction() {
    let mut talk = begun();
    talk.client(command("MULTI")).server("-NOAUTH Authentication required.\r\n");
    assert!(talk.is_at_present(), "it was not opened");
    talk.client(command("EXEC")).server("-ERR EXEC without MULTI\r\n");
    assert!(talk.is_at_present());
    talk.client(command("MULTI")).server("+OK\r\n");
    let mark = talk.mark;
    talk.client(command("EXEC")).server("-MOVED 1 127.0.0.1:7000\r\n");
    assert_eq!(talk.mark, mark, "perhaps it is still open");
    talk.client(command("GET key")).server("$-1\r\n");
    assert!(talk.is_at_present(), "a command that is carried out is not queued");
}

#[test]
fn what_is_watched_is_watched_again() {
    let mut talk = begun();
    let mark = talk.mark;
    talk.client(command("WATCH n")).server("+OK\r\n").client(command("GET n")).server("$1\r\n1\r\n");
    assert_eq!(talk.mark, mark);
    talk.client([command("MULTI"), command("UNWATCH"), command("EXEC")].concat()).server("+OK\r\n+QUEUED\r\n");
    assert_eq!(talk.mark, mark);
    talk.server("*1\r\n+OK\r\n");
    assert!(talk.is_at_present());
    talk.client(command("WATCH n")).server("+OK\r\n");
    assert!(!talk.is_at_present());
    talk.client(command("UNWATCH")).server("+OK\r\n");
    assert!(talk.is_at_present());
    talk.client(command("ASKING")).server("+OK\r\n");
    assert!(!talk.is_at_present());
    talk.client(command("GET key")).server("$-1\r\n");
    assert!(talk.is_at_present(), "it was for one command");
}

#[test]
fn settings_become_a_prologue_in_which_a_later_one_takes_the_place_of_an_earlier_one() {
    let mut talk = Talk::new("request");
    let auth = command("AUTH default secret");
    let (first, second) = (command("SELECT 3"), command("select 10"));
    let name = command("CLIENT SETINFO LIB-NAME redis-py");
    talk.client([auth.clone(), first.clone(), name.clone()].concat()).server("+OK\r\n");
    assert_eq!(talk.mark.c2s, auth.len() as u64);
    assert_eq!(talk.prologue(), (String::from_utf8(auth.clone()).unwrap(), "+OK\r\n".to_owned()));
    talk.server("+OK\r\n-ERR unknown subcommand\r\n");
    assert!(talk.is_at_present());
    assert_eq!(talk.prologue().0.as_bytes(), [auth.clone(), first].concat());
    talk.client(&second).server("-ERR DB index is out of range\r\n");
    assert!(talk.is_at_present());
    assert!(talk.prologue().0.contains("SELECT"), "what is refused changes nothing");
    talk.client(&second).server("+OK\r\n").client(command("INCR n")).server(":1\r\n").client(&name).server("+OK\r\n");
    assert!(talk.is_at_present());
    assert_eq!(talk.prologue(), (String::from_utf8([auth, second, name].concat()).unwrap(), "+OK\r\n".repeat(3)));
    talk.save_and_restore();
    talk.client("CLIENT SETNAME me\r\n").server("+OK\r\n");
    assert!(talk.is_at_present() && talk.prologue().0.ends_with("CLIENT SETNAME me\r\n"));
}

#[test]
fn a_setting_that_only_a_transaction_makes_or_that_is_too_long_is_given_up() {
    let mut talk = begun();
    talk.client([command("MULTI"), command("SELECT 1")].concat()).server("+OK\r\n").server("+QUEUED\r\n");
    assert!(talk.gave_up());
    let mut talk = begun();
    talk.client(command(&format!("AUTH {}", "x".repeat(400))));
    assert!(talk.gave_up());
    // Made while something is open: no mark can have it in its prologue and lie before what is open.
    let mut talk = begun();
    let mark = talk.mark;
    talk.client(command("WATCH n")).server("+OK\r\n").client(command("SELECT 1")).server("+OK\r\n");
    talk.client(command("UNWATCH")).server("+OK\r\n").client(command("INCR n")).server(":1\r\n");
    assert_eq!((talk.mark, talk.gave_up()), (mark, false));
    assert_eq!(talk.prologue().0, "");
}

#[test]
fn a_state_that_cannot_be_made_again_is_given_up_once_all_before_is_answered() {
    for words in [
        "SUBSCRIBE a b",
        "psubscribe a*",
        "SSUBSCRIBE a",
        "UNSUBSCRIBE",
        "MONITOR",
        "SYNC",
        "PSYNC ? -1",
        "REPLCONF capa eof",
        "RESET",
        "CLIENT REPLY OFF",
        "CLIENT TRACKING on",
        "CLIENT CACHING yes",
        "CLIENT SOMETHING new",
        "SCRIPT DEBUG yes",
    ] {
        let mut talk = begun();
        talk.client([command("INCR n"), command(words), command("INCR n")].concat());
        assert!(!talk.gave_up(), "{words}: an answer is missing");
        talk.server(":2\r\n");
        assert!(talk.gave_up(), "{words}");
        let mark = talk.mark;
        talk.server(":3\r\n*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nb\r\n")
            .client(command("PING"))
            .server("+PONG\r\n")
            .client(command("PING"));
        assert_eq!(talk.mark, mark, "{words}");
    }
    for words in ["CLIENT LIST", "CLIENT ID", "SCRIPT LOAD return", "HELLO", "client kill 1.2.3.4:5", "SUBSCRIBERS"] {
        let mut talk = begun();
        talk.client(command(words)).server("+fine\r\n");
        assert!(talk.is_at_present(), "{words} changes nothing");
    }
}

#[test]
fn hello_is_given_up_when_it_has_an_effect() {
    let mut talk = begun();
    talk.client(command("HELLO 3")).server("-NOPROTO unsupported protocol version\r\n");
    assert!(talk.is_at_present());
    talk.client(command("HELLO 3 AUTH default secret"));
    assert!(!talk.gave_up());
    talk.server("%1\r\n$2\r\nid\r\n:7\r\n");
    assert!(talk.gave_up());
}

#[test]
fn the_last_command_of_a_connection_is_given_to_the_next_process_again() {
    for words in ["QUIT", "SHUTDOWN nosave"] {
        let mut talk = begun();
        let mark = talk.mark;
        talk.client(command(words)).server("+OK\r\n");
        assert_eq!((talk.mark, talk.gave_up()), (mark, false), "{words}");
    }
}

#[test]
fn a_long_pipeline_of_transactions_that_outlives_the_armor_is_taken_up_after_the_next_one_that_is_seen() {
    let transaction = [command("MULTI"), command("INCR n"), command("EXEC")].concat();
    let answer = "+OK\r\n+QUEUED\r\n*1\r\n:1\r\n";
    let mut talk = begun();
    talk.client(transaction.repeat(10));
    talk.save_and_restore();
    talk.server(answer.repeat(4));
    assert!(talk.mark.c2s > 0);
    let mark = talk.mark;
    talk.server(answer.repeat(6));
    assert_eq!(talk.mark.c2s, mark.c2s + transaction.len() as u64, "fifteen commands had an end of their own");
    talk.client(command("INCR n")).server(":1\r\n");
    assert!(!talk.is_at_present(), "something may be watched");
    talk.client(&transaction).server(answer);
    assert!(talk.is_at_present());
}

#[test]
fn settings_that_find_no_entry_of_their_own_stop_the_marks() {
    let incr = command("INCR n");
    let mut talk = begun();
    talk.client(command("SELECT 2")).server("+OK\r\n").client(incr.repeat(16)).client(command("SELECT 1")).client(&incr);
    talk.save_and_restore();
    assert!(talk.prologue().0.contains("SELECT"), "what belongs to the mark is kept");
    let mark = talk.mark;
    talk.server(":1\r\n".repeat(16)).server("+OK\r\n:1\r\n").client(&incr).server(":1\r\n").client(&incr);
    assert_eq!((talk.mark, talk.gave_up()), (mark, false));
}

#[test]
fn what_is_not_resp_is_left_to_turns_unless_the_connection_has_state_or_requests_under_way() {
    for garbage in ["*x\r\n", "*1\r\n+PING\r\n", "*1\r\n$x\r\n", "*1\r\n$4\r\nPINGxx", "*01\r\n", "*1\n", "\"GET\" key\r\n", "\0\0\r\n"] {
        let mut talk = begun();
        let mark = talk.mark;
        talk.client(garbage).server("-ERR Protocol error\r\n");
        assert_eq!(talk.mark, mark, "{garbage:?}");
        talk.client("next");
        assert_eq!(talk.mark.s2c, talk.said.s2c, "{garbage:?}");
        let mut talk = begun();
        talk.client(command("SELECT 1")).server("+OK\r\n");
        let mark = talk.mark;
        talk.client(garbage).server("-ERR Protocol error\r\n").client("next").server("more").client("next");
        assert_eq!(talk.mark, mark, "{garbage:?}");
        assert!(talk.prologue().0.contains("SELECT"));
    }
    let mut talk = begun();
    let mark = talk.mark;
    talk.client(command("GET a").repeat(2)).server("hello").client(command("GET b")).server("hello").client("next");
    assert_eq!(talk.mark, mark, "turns would lose an answer");
    let mut talk = begun();
    talk.server("+unasked\r\n").client(command("GET b")).server("$-1\r\n");
    assert!(!talk.is_at_present(), "a server that speaks unasked is not followed");
    let mut talk = begun();
    talk.server(">2\r\n+invalidate\r\n+key\r\n").client(command("GET b")).server("$-1\r\n");
    assert!(talk.is_at_present(), "a push is no answer");
}

/// A value, and how it is written.
fn value() -> impl Strategy<Value = String> {
    let scalar = prop_oneof![
        "[A-Za-z ]{0,90}".prop_map(|text| format!("+{text}\r\n")),
        "[A-Z]{1,9} [a-z ]{0,90}".prop_map(|text| format!("-{text}\r\n")),
        any::<i64>().prop_map(|number| format!(":{number}\r\n")),
        "[ -~\r\n]{0,90}".prop_map(|text| format!("${}\r\n{text}\r\n", text.len())),
        "[ -~]{0,30}".prop_map(|text| format!("={}\r\ntxt:{text}\r\n", text.len() + 4)),
        prop::sample::select(vec!["_\r\n", "#t\r\n", ",1.5\r\n", "$-1\r\n", "*-1\r\n", "(12345678901234567890\r\n", "!3\r\nERR\r\n"])
            .prop_map(str::to_owned),
        prop::collection::vec("[ -~]{1,9}", 0..4).prop_map(|pieces| {
            let pieces: String = pieces.iter().map(|piece| format!(";{}\r\n{piece}\r\n", piece.len())).collect();
            format!("$?\r\n{pieces};0\r\n")
        }),
    ];
    scalar.prop_recursive(3, 20, 4, |inner| {
        (prop::collection::vec((inner.clone(), inner), 0..4), 0..7u8).prop_map(|(pairs, form)| {
            let all: String = pairs.iter().map(|(first, second)| format!("{first}{second}")).collect();
            match form {
                0 => format!("*{}\r\n{all}", pairs.len() * 2),
                1 => format!("%{}\r\n{all}", pairs.len()),
                2 => format!("~{}\r\n{all}", pairs.len() * 2),
                3 => format!("*?\r\n{all}.\r\n"),
                4 => format!("%?\r\n{all}.\r\n"),
                5 => format!("|{}\r\n{all}:1\r\n", pairs.len()),
                _ => format!("*1\r\n*{}\r\n{all}", pairs.len() * 2),
            }
        })
    })
}

fn exchange() -> impl Strategy<Value = Vec<Exchange>> {
    let plain = |asked: Vec<u8>, answered: String| Exchange { asked, answered: answered.into_bytes(), closed: true };
    let push = prop::option::weighted(0.1, "[a-z]{1,9}".prop_map(|text| format!(">2\r\n+{text}\r\n*1\r\n:1\r\n")));
    let arguments = prop::collection::vec("[ -~\r\n]{0,60}", 0..5);
    let single = (prop::sample::select(vec!["GET", "set", "HGETALL", "XADD", "CLIENT", "FT.SEARCH"]), arguments, value(), push).prop_map(
        move |(name, arguments, value, push)| {
            let second = if name == "CLIENT" { vec!["LIST".to_owned()] } else { Vec::new() };
            let words: Vec<&str> =
                std::iter::once(name).chain(second.iter().map(String::as_str)).chain(arguments.iter().map(String::as_str)).collect();
            let words: String = std::iter::once(format!("*{}\r\n", words.len()))
                .chain(words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len())))
                .collect();
            vec![plain(words.into_bytes(), push.unwrap_or_default() + &value)]
        },
    );
    let open = |words: &str, answered: &str| Exchange { asked: command(words), answered: answered.into(), closed: false };
    let transaction = (0..4usize, any::<bool>()).prop_map(move |(queued, watched)| {
        let mut all = Vec::new();
        if watched {
            all.extend([open("WATCH a", "+OK\r\n"), open("GET a", "$1\r\nx\r\n")]);
        }
        all.push(open("MULTI", "+OK\r\n"));
        all.extend((0..queued).map(|_| open("INCR a", "+QUEUED\r\n")));
        all.push(Exchange { closed: true, ..open("EXEC", &format!("*{queued}\r\n{}", ":1\r\n".repeat(queued))) });
        all
    });
    let setting = (0..16u8, any::<bool>()).prop_map(move |(number, fails)| {
        vec![plain(
            command(&format!("SELECT {number}")),
            if fails { "-ERR DB index is out of range\r\n".to_owned() } else { "+OK\r\n".to_owned() },
        )]
    });
    prop_oneof![6 => single, 2 => transaction, 1 => setting]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn marks_lie_after_every_complete_exchange_whatever_the_pieces_and_over_deaths_of_the_armor(
        exchanges in prop::collection::vec(exchange(), 1..10),
        ahead in 1..16usize,
        choices in prop::collection::vec(any::<u8>(), 1..60),
    ) {
        let exchanges = exchanges.concat();
        let steps = interleave(&exchanges, ahead, &choices);
        let mut choices = choices.iter().copied().cycle();
        let (mut by_byte, mut by_piece) = (Talk::new("request"), Talk::new("request"));
        for (side, bytes) in &steps {
            for byte in bytes {
                by_byte.say(*side, &[*byte]);
                prop_assert_eq!(by_byte.mark, expected(&exchanges, by_byte.said));
            }
            for piece in pieces(bytes, &mut choices) {
                by_piece.say(*side, piece);
                by_piece.save_and_restore();
                prop_assert_eq!(by_piece.mark, expected(&exchanges, by_piece.said));
            }
            prop_assert_eq!(by_byte.prologue(), by_piece.prologue());
        }
        prop_assert!(by_piece.is_at_present());
        // The last database that was chosen is the one that a new process is told.
        let chosen = exchanges.iter().rfind(|exchange| exchange.asked.starts_with(b"*2\r\n$6\r\nSELECT") && exchange.answered == b"+OK\r\n");
        prop_assert_eq!(by_byte.prologue().0.into_bytes(), chosen.map_or(Vec::new(), |exchange| exchange.asked.clone()));
    }

    #[test]
    fn bytes_that_are_changed_anywhere_set_the_same_marks_whatever_the_pieces(
        exchanges in prop::collection::vec(exchange(), 1..5),
        ahead in 1..5usize,
        choices in prop::collection::vec(any::<u8>(), 1..40),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut steps = interleave(&exchanges.concat(), ahead, &choices);
        for (index, byte) in changes {
            let total: usize = steps.iter().map(|(_, bytes)| bytes.len()).sum();
            let mut at = index.index(total);
            for (_, bytes) in &mut steps {
                if at < bytes.len() {
                    bytes[at] = if byte < 100 { b"\r\n*$+-:01>"[usize::from(byte) % 10] } else { byte };
                    break;
                }
                at -= bytes.len();
            }
        }
        let mut choices = choices.iter().copied().cycle();
        let (mut by_byte, mut by_piece) = (Talk::new("resp"), Talk::new("resp"));
        for (side, bytes) in &steps {
            for byte in bytes {
                by_byte.say(*side, &[*byte]);
            }
            for piece in pieces(bytes, &mut choices) {
                by_piece.say(*side, piece);
                by_piece.save_and_restore();
            }
            // A mark that comes in one piece with what gives the conversation up is not needed any more.
            if !by_byte.gave_up() {
                prop_assert_eq!(by_byte.mark, by_piece.mark);
            }
            prop_assert_eq!(by_byte.saved(), by_piece.saved());
        }
    }
}
