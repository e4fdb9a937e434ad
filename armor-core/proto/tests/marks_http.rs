//! Marks in HTTP/1.0 and HTTP/1.1 (RFC 9112): after which answers they lie, and after which they must not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod mark_talk;

use mark_talk::{Exchange, Talk, expected, interleave, pieces};
use proptest::prelude::*;

const GET: &str = "GET /index.html HTTP/1.1\r\nHost: example.org\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\nhello";

/// A conversation that begins with a complete exchange.
fn begun(policy: &'static str) -> Talk {
    let mut talk = Talk::new(policy);
    talk.client(GET).server(OK);
    assert!(talk.is_at_present());
    talk
}

#[test]
fn the_mark_moves_with_the_last_byte_of_an_answer_and_not_before() {
    let mut talk = Talk::new("request");
    talk.client(GET).server(&OK[..OK.len() - 1]);
    assert_eq!(talk.mark.c2s, 0);
    talk.server("o");
    assert!(talk.is_at_present());
}

#[test]
fn answers_end_as_rfc_9112_says() {
    for (asked, answered) in [
        (GET, "HTTP/1.1 204 No Content\r\n\r\n"),
        (GET, "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
        (GET, "HTTP/1.1 404\r\ncontent-length:0\r\n\r\n"),
        ("HEAD / HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        ("HEAD / HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (
            GET,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1a;name=value\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\n\r\n",
        ),
        (GET, "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\nTrailer: value\r\nAnother: one\r\n\r\n"),
        (
            GET,
            "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        ),
        ("POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"),
        ("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx"),
    ] {
        let mut talk = begun("http");
        talk.client(asked).server(&answered[..answered.len() - 1]);
        assert!(!talk.is_at_present(), "{answered:?} is not complete");
        talk.server(&answered[answered.len() - 1..]);
        assert!(talk.is_at_present(), "{asked:?} is answered by {answered:?}");
        talk.client(GET).server(OK);
        assert!(talk.is_at_present(), "{asked:?} {answered:?} and what comes after");
    }
}

#[test]
fn pipelined_requests_are_marked_one_by_one() {
    let mut talk = Talk::new("request");
    talk.client(GET.repeat(3)).server(OK).server(&OK[..10]);
    assert_eq!((talk.mark.c2s, talk.mark.s2c), (GET.len() as u64, OK.len() as u64));
    talk.server(&OK[10..]).server(OK);
    assert!(talk.is_at_present());
}

#[test]
fn a_pipeline_that_is_too_long_is_marked_by_its_first_requests_and_when_it_has_drained() {
    let mut talk = Talk::new("request");
    talk.client(GET.repeat(4200));
    for answers in 1..=4095 {
        talk.server(OK);
        assert_eq!(talk.mark.c2s, (answers * GET.len()) as u64);
    }
    talk.server(OK.repeat(104));
    assert_eq!(talk.mark.c2s, (4095 * GET.len()) as u64, "105 requests share an end");
    talk.server(OK);
    assert!(talk.is_at_present());
    talk.client("HEAD / HTTP/1.1\r\n\r\n").server("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
    assert!(talk.is_at_present());
}

#[test]
fn no_mark_lies_after_an_answer_with_which_the_server_ends_the_connection() {
    for (asked, answered) in [
        (GET, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"),
        (GET, "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        (GET, "HTTP/1.1 200 OK\r\n\r\nuntil the end"),
        (GET, "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nuntil the end"),
        ("GET / HTTP/1.0\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        ("GET / HTTP/1.1\r\nConnection: upgrade, close\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\n"),
    ] {
        let mut talk = begun("request");
        let mark = talk.mark;
        talk.client(asked).server(answered).client(GET).server(OK);
        assert_eq!(talk.mark, mark, "{asked:?} {answered:?}");
    }
}

#[test]
fn a_continued_request_is_one_request() {
    let mut talk = begun("request");
    talk.client("PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").server("HTTP/1.1 100 Continue\r\n\r\n");
    let mark = talk.mark;
    talk.client("body").server("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n");
    assert_eq!(talk.mark, mark);
    talk.server("\r\n");
    assert!(talk.is_at_present());
}

#[test]
fn a_body_that_may_or_may_not_come_is_left_to_turns() {
    let put = "PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
    let refusal = "HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n";
    let mut talk = begun("request");
    let mark = talk.mark;
    talk.client(put).server(refusal);
    assert_eq!(talk.mark, mark, "nobody knows what comes next");
    talk.client(GET);
    assert_eq!(talk.mark.s2c, talk.said.s2c, "the client has spoken again");
    talk.server(OK);
    assert_eq!(talk.mark.c2s, mark.c2s + put.len() as u64, "and is not followed any more");
    // Who has begun the body will end it.
    let mut talk = begun("request");
    talk.client(put).client("b").server(refusal).client("ody");
    assert!(talk.is_at_present());
}

#[test]
fn an_answer_before_the_end_of_its_request_is_complete_with_the_request() {
    let mut talk = begun("request");
    let mark = talk.mark;
    talk.client("POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\n01234").server("HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(talk.mark, mark);
    talk.client("56789");
    assert!(talk.is_at_present());
    talk.client(GET).server(OK);
    assert!(talk.is_at_present());
}

#[test]
fn nothing_can_be_taken_up_after_an_upgrade_a_tunnel_or_an_authenticated_connection() {
    for (asked, answered) in [
        ("GET /chat HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "HTTP/1.1 101 Switching Protocols\r\n\r\n"),
        ("CONNECT example.org:443 HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"),
        ("GET / HTTP/1.1\r\nAuthorization: NTLM TlRMTVNTUAAB\r\n\r\n", "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"),
        ("GET / HTTP/1.1\r\nAuthorization:Negotiate YIIZ\r\n\r\n", OK),
    ] {
        let mut talk = Talk::new("request");
        talk.client([GET, asked].concat()).server(OK);
        let mark = talk.mark;
        assert_eq!(mark.c2s, GET.len() as u64, "what came before is marked");
        talk.server(answered).client("anything").server("anything").client(GET).server(OK).client(GET);
        assert_eq!(talk.mark, mark, "{asked:?}");
        assert!(!talk.gave_up());
    }
}

#[test]
fn an_upgrade_that_the_server_does_not_take_up_changes_nothing() {
    let mut talk = begun("request");
    talk.client("GET / HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n").server(OK);
    assert!(talk.is_at_present());
}

#[test]
fn http_2_is_always_replayed_from_the_beginning() {
    let mut talk = Talk::new("request");
    talk.client("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").server("frames").client("frames").server("frames").client("frames");
    assert_eq!(talk.mark.c2s, 0);
    assert!(!talk.gave_up());
}

#[test]
fn tls_is_given_up_and_what_only_begins_like_it_is_not() {
    let mut talk = Talk::new("request");
    talk.client(b"\x16").client(b"\x03\x01\x02\x00\x01");
    assert!(talk.gave_up());
    let mut talk = Talk::new("request");
    talk.client(b"\x16\x00").server("answer").client("next");
    assert!(!talk.gave_up());
    assert_eq!(talk.mark.s2c, 6, "turns");
}

#[test]
fn other_protocols_are_left_to_turns() {
    for question in ["get key\r\n", "EHLO example.org\r\n", "Q0 12\n", "GET", "\0\0\0\x10data", "GET /\r\n", "GET / HTTP/3.0\r\n"] {
        let mut talk = Talk::new("request");
        talk.client(question).server("answer");
        assert_eq!(talk.mark.c2s, 0, "{question:?}");
        talk.client(question);
        assert_eq!((talk.mark.c2s, talk.mark.s2c), (question.len() as u64, 6), "{question:?}");
    }
    let mut talk = Talk::new("request");
    talk.server("220 ready\r\n").client(GET).server(OK).client(GET);
    assert_eq!(talk.mark.c2s, 0, "a server that speaks first greets again");
}

#[test]
fn what_could_be_read_in_two_ways_is_not_understood() {
    for asked in [
        "POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length : 3\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: +3\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 3\r\n 4\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
        "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\n",
        "GET / HTTP/1.1\n\n",
        "GET / HTTP/1.1\r\nno colon\r\n\r\n",
        "GET / HTTP/1.1\r\n folded: line\r\n\r\n",
        "GET / HTTP/1.1\r\nA: b\rContent-Length: 3\r\n\r\n",
    ] {
        let mut talk = begun("request");
        let mark = talk.mark;
        talk.client(asked).server(OK);
        assert_eq!(talk.mark, mark, "{asked:?}");
        talk.client(GET);
        assert_eq!(talk.mark.s2c, talk.said.s2c, "turns take over: {asked:?}");
        // With requests under way turns would lose them.
        let mut talk = Talk::new("request");
        talk.client([GET, GET, asked].concat()).server(OK).client(GET).server(OK).client(GET);
        assert!(talk.mark.c2s <= 2 * GET.len() as u64, "{asked:?}");
    }
    for answered in
        ["HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP/2 200 OK\r\n", "hello", "HTTP/1.1 20 OK\r\n"]
    {
        let mut talk = begun("request");
        let mark = talk.mark;
        talk.client(GET).server(answered);
        assert_eq!(talk.mark, mark);
        talk.client(GET);
        assert_eq!(talk.mark.s2c, talk.said.s2c, "{answered:?}");
    }
}

#[test]
fn an_answer_that_nobody_asked_for_is_not_counted() {
    let mut talk = begun("request");
    let mark = talk.mark;
    talk.server("HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(talk.mark, mark);
    talk.client(GET).server(OK);
    assert!(!talk.is_at_present(), "it is not followed any more");
}

#[test]
fn a_request_after_lines_that_are_longer_than_what_is_kept() {
    let mut talk = Talk::new("request");
    let path = "x".repeat(5000);
    let cookie = "c".repeat(9000);
    talk.client(format!("GET /{path} HTTP/1.1\r\nCookie: {cookie}\r\n{cookie}: name\r\nContent-Length: 2\r\n\r\nok"));
    talk.server(format!("HTTP/1.1 200 {path}\r\nSet-Cookie: {cookie}\r\nContent-Length: 3\r\n\r\nabc"));
    assert!(talk.is_at_present());
    let mut talk = Talk::new("request");
    talk.client(format!("GET / HTTP/1.1\r\nConnection: {cookie}\r\n\r\n")).server(OK);
    assert_eq!(talk.mark.c2s, 0, "a field that matters and is cut");
}

fn framed(line: String, fields: Vec<String>, body: Option<Vec<u8>>, chunk: usize) -> Vec<u8> {
    let mut message = format!("{line}\r\n{}", fields.iter().map(|field| format!("{field}\r\n")).collect::<String>()).into_bytes();
    match body {
        Some(body) if chunk > 0 => {
            message.extend(b"Transfer-Encoding: chunked\r\n\r\n");
            for piece in body.chunks(chunk) {
                message.extend(format!("{:x};ext=\"a;b\"\r\n", piece.len()).bytes().chain(piece.iter().copied()).chain(*b"\r\n"));
            }
            message.extend(b"0\r\nX-Trailer: done\r\n\r\n");
        }
        Some(body) => message.extend(format!("Content-Length: {}\r\n\r\n", body.len()).bytes().chain(body)),
        None => message.extend(b"\r\n"),
    }
    message
}

fn fields() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(("[A-Za-z-]{1,70}", "[ -~]{0,120}"), 0..4)
        .prop_map(|fields| fields.into_iter().map(|(name, value)| format!("X-{name}: {value}")).collect())
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..200)
}

/// An exchange and its parts in every form that is followed.
fn exchange() -> impl Strategy<Value = Exchange> {
    let request = (
        prop::sample::select(vec!["GET", "POST", "HEAD", "OPTIONS", "M-SEARCH"]),
        "[!-~]{1,90}",
        fields(),
        prop::option::of(body()),
        0..40usize,
    );
    let answer = (prop::sample::select(vec![200, 204, 304, 404, 500]), fields(), body(), 0..40usize, 0..3usize);
    (request, answer).prop_map(|((method, target, fields, asked, chunk), (status, answer_fields, answered, answer_chunk, interim))| {
        let asked = framed(format!("{method} {target} HTTP/1.1"), fields, asked, chunk);
        let bodiless = method == "HEAD" || status == 204 || status == 304;
        let whole = framed(format!("HTTP/1.1 {status} Some Reason"), answer_fields, Some(answered), answer_chunk);
        let head = whole.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
        let answer = if bodiless { &whole[..head] } else { &whole[..] };
        Exchange { asked, answered: ["HTTP/1.1 103 Hints\r\nLink: x\r\n\r\n".repeat(interim).as_bytes(), answer].concat(), closed: true }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn marks_lie_after_every_complete_exchange_whatever_the_pieces_and_over_deaths_of_the_armor(
        exchanges in prop::collection::vec(exchange(), 1..12),
        ahead in 1..12usize,
        choices in prop::collection::vec(any::<u8>(), 1..60),
    ) {
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
        }
        prop_assert!(by_piece.is_at_present());
    }

    #[test]
    fn bytes_that_are_changed_anywhere_set_the_same_marks_whatever_the_pieces(
        exchanges in prop::collection::vec(exchange(), 1..5),
        ahead in 1..5usize,
        choices in prop::collection::vec(any::<u8>(), 1..40),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut steps = interleave(&exchanges, ahead, &choices);
        for (index, byte) in changes {
            let total: usize = steps.iter().map(|(_, bytes)| bytes.len()).sum();
            let mut at = index.index(total);
            for (_, bytes) in &mut steps {
                if at < bytes.len() {
                    bytes[at] = if byte < 100 { b"\r\n: 0"[usize::from(byte) % 5] } else { byte };
                    break;
                }
                at -= bytes.len();
            }
        }
        let mut choices = choices.iter().copied().cycle();
        let (mut by_byte, mut by_piece) = (Talk::new("request"), Talk::new("request"));
        for (side, bytes) in &steps {
            for byte in bytes {
                by_byte.say(*side, &[*byte]);
            }
            for piece in pieces(bytes, &mut choices) {
                by_piece.say(*side, piece);
                by_piece.save_and_restore();
            }
            prop_assert_eq!(by_byte.mark, by_piece.mark);
            prop_assert_eq!(by_byte.saved(), by_piece.saved());
        }
    }
}
