//! The framing alone, fed whole and byte by byte.

use super::*;

/// Stands for a policy: only `..` is not in order.
struct NoDots;

impl TargetJudge for NoDots {
    type Fault = &'static str;

    fn judge(target: &[u8]) -> Result<(), &'static str> {
        if target.windows(2).any(|two| two == b"..") {
            return Err("dots");
        }
        Ok(())
    }

    fn connect(_target: &[u8]) -> &'static str {
        "connect"
    }
}

const LIMITS: HeadLimits = HeadLimits {
    max_head: 32 * 1024,
    max_target: 8 * 1024,
    max_headers: 100,
    max_body: 1 << 20,
};

/// Feeds `input` in pieces of `piece` bytes; returns what was passed on, the heads, and the fault if any.
fn feed(input: &[u8], piece: usize) -> (Vec<u8>, usize, Option<Fault>) {
    let mut framing = Framing::<NoDots>::new(LIMITS);
    let mut buffer: Vec<u8> = Vec::new();
    let (mut passed, mut heads) = (Vec::new(), 0);
    for chunk in input.chunks(piece) {
        buffer.extend_from_slice(chunk);
        loop {
            match framing.step(&buffer) {
                Step::NeedMore => break,
                Step::Skip(count) => drop(buffer.drain(..count)),
                Step::Pass(count) => passed.extend(buffer.drain(..count)),
                Step::Head(count, _) => {
                    heads += 1;
                    passed.extend(buffer.drain(..count));
                }
                Step::Fault(fault) => return (passed, heads, Some(fault)),
            }
        }
    }
    (passed, heads, None)
}

fn fault_of(input: &str) -> Option<Fault> {
    let whole = feed(input.as_bytes(), usize::MAX);
    let dripped = feed(input.as_bytes(), 1);
    assert_eq!(
        whole, dripped,
        "the verdict must not depend on how bytes arrive: {input:?}"
    );
    whole.2
}

#[test]
fn messages_in_order_pass_byte_for_byte_however_they_arrive() {
    let input = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n\
        POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello\
        POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nX-T: 1\r\n\r\n\
        GET /d HTTP/1.0\r\nhost:h\r\n\r\n";

    for piece in [1, 2, 3, 7, 64, usize::MAX] {
        assert_eq!(feed(input, piece), (input.to_vec(), 4, None), "pieces of {piece}");
    }
}

#[test]
fn every_ambiguity_is_refused() {
    let table = [
        ("GET /\r\nHost: h\r\n\r\n", Fault::RequestLine),
        ("GET  / HTTP/1.1\r\nHost: h\r\n\r\n", Fault::RequestLine),
        ("GET / HTTP/1.1 \r\nHost: h\r\n\r\n", Fault::HeaderLine),
        ("GET / HTTP/2.0\r\nHost: h\r\n\r\n", Fault::Version),
        ("PRI * HTTP/2.0\r\n\r\n", Fault::Version),
        ("GET / HTTP/1.1\nHost: h\r\n\r\n", Fault::LineEnd),
        ("GET / HTTP/1.1\r\nHost: h\n\r\n", Fault::LineEnd),
        ("GET / HTTP/1.1\r\nHost: h\rX: y\r\n\r\n", Fault::LineEnd),
        ("GET / HTTP/1.1\r\nHost: h\0\r\n\r\n", Fault::LineEnd),
        ("GET / HTTP/1.1\r\nHost: h\r\nA : b\r\n\r\n", Fault::HeaderLine),
        ("GET / HTTP/1.1\r\nHost: h\r\n: b\r\n\r\n", Fault::HeaderLine),
        (
            "GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n c\r\n\r\n",
            Fault::HeaderLine,
        ),
        ("GET / HTTP/1.1\r\nHost: h\r\nnothing\r\n\r\n", Fault::HeaderLine),
        ("GET / HTTP/1.1\r\nAccept: x\r\n\r\n", Fault::HostMissing),
        ("GET / HTTP/1.0\r\nAccept: x\r\n\r\n", Fault::HostMissing),
        ("GET / HTTP/1.1\r\nHost: h\r\nhost: h\r\n\r\n", Fault::HostTwice),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            Fault::ContentLength,
        ),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +1\r\n\r\n",
            Fault::ContentLength,
        ),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n",
            Fault::ContentLength,
        ),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0x2\r\n\r\n",
            Fault::ContentLength,
        ),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2, 2\r\n\r\n",
            Fault::ContentLength,
        ),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 02\r\n\r\n",
            Fault::ContentLength,
        ),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length:\r\n\r\n",
            Fault::ContentLength,
        ),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999999999999\r\n\r\n",
            Fault::ContentLength,
        ),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            Fault::BothLengths,
        ),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
            Fault::BothLengths,
        ),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            Fault::TransferEncoding,
        ),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: identity\r\n\r\n",
            Fault::TransferEncoding,
        ),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n",
            Fault::TransferEncoding,
        ),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked;q=1\r\n\r\n",
            Fault::TransferEncoding,
        ),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            Fault::TransferEncoding,
        ),
        (
            "POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n",
            Fault::TransferEncodingInOneZero,
        ),
        (
            "GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx",
            Fault::BodyWithoutMeaning,
        ),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nExpect: 200-ok\r\n\r\n",
            Fault::Expectation,
        ),
    ];

    for (input, fault) in table {
        assert_eq!(fault_of(input), Some(fault), "{input:?}");
    }
}

#[test]
fn a_chunked_body_is_delimited_strictly() {
    let head = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    let table = [
        ("3\nabc", Fault::ChunkSize),
        ("0x3\r\nabc\r\n", Fault::ChunkSize),
        ("+3\r\nabc\r\n", Fault::ChunkSize),
        (" 3\r\nabc\r\n", Fault::ChunkSize),
        ("3 \r\nabc\r\n", Fault::ChunkSize),
        ("\r\nabc\r\n", Fault::ChunkSize),
        ("ffffffffffffffff\r\n", Fault::ChunkSize),
        ("3;a\0b\r\nabc\r\n", Fault::ChunkSize),
        ("3\r\nabcX\r\n", Fault::ChunkEnd),
        ("3\r\nabc\n0\r\n\r\n", Fault::ChunkEnd),
        ("0\r\nContent-Length: 5\r\n\r\n", Fault::Trailer),
        ("0\r\nTransfer-Encoding: chunked\r\n\r\n", Fault::Trailer),
        ("0\r\nHost: other\r\n\r\n", Fault::Trailer),
        ("0\r\nbroken\r\n\r\n", Fault::Trailer),
        ("0\r\nX: y\n\r\n", Fault::Trailer),
        ("7fffffffff\r\n", Fault::BodyTooLarge { limit_bytes: 1 << 20 }),
        (
            "1\r\na\r\n100000\r\n",
            Fault::BodyTooLarge { limit_bytes: 1 << 20 },
        ),
    ];

    for (body, fault) in table {
        assert_eq!(fault_of(&format!("{head}{body}")), Some(fault), "{body:?}");
    }
    let endless = format!("{head}3;{}", "x".repeat(MAX_CHUNK_LINE));
    assert_eq!(fault_of(&endless), Some(Fault::ChunkSize));
}

#[test]
fn a_head_over_its_limits_says_which() {
    let long = "x".repeat(33 * 1024);
    let many = "A: b\r\n".repeat(101);

    assert!(matches!(
        fault_of(&format!("GET /{long} HTTP/1.1\r\n")),
        Some(Fault::TargetTooLong { .. })
    ));
    assert!(matches!(
        fault_of(&format!(
            "GET /{} HTTP/1.1\r\nHost: h\r\n\r\n",
            "x".repeat(8 * 1024)
        )),
        Some(Fault::TargetTooLong { limit_bytes: 8192 })
    ));
    assert!(matches!(
        fault_of(&format!("GET / HTTP/1.1\r\nHost: h\r\nA: {long}\r\n\r\n")),
        Some(Fault::HeadTooLarge { limit_bytes: 32768 })
    ));
    assert!(matches!(
        fault_of(&format!("GET / HTTP/1.1\r\nHost: h\r\n{many}\r\n")),
        Some(Fault::TooManyHeaders { limit: 100 })
    ));
    assert_eq!(
        fault_of(&format!(
            "GET /{} HTTP/1.1\r\nHost: h\r\n\r\n",
            "x".repeat(8 * 1024 - 1)
        )),
        None
    );
}

#[test]
fn one_empty_line_in_front_is_forgiven_and_a_second_is_not() {
    let request = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";

    assert_eq!(fault_of(&format!("\r\n{request}\r\n{request}")), None);
    assert_eq!(fault_of(&format!("\r\n\r\n{request}")), Some(Fault::RequestLine));
}

#[test]
fn a_target_that_the_judge_refuses_is_the_targets_fault_not_the_lines() {
    let mut framing = Framing::<NoDots>::new(LIMITS);

    let step = framing.step(b"GET /a/../b HTTP/1.1\r\nHost: h\r\n\r\n");

    assert!(matches!(
        step,
        Step::Head(
            _,
            HeadSeen {
                target_fault: Some("dots"),
                ..
            }
        )
    ));
}

#[test]
fn connect_is_never_in_order_whatever_its_target() {
    for target in ["h:80", "/a"] {
        let mut framing = Framing::<NoDots>::new(LIMITS);
        let head = format!("CONNECT {target} HTTP/1.1\r\nHost: h\r\n\r\n");

        let step = framing.step(head.as_bytes());

        assert!(matches!(
            step,
            Step::Head(
                _,
                HeadSeen {
                    target_fault: Some("connect"),
                    ..
                }
            )
        ));
    }
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_panic_or_pass_more_than_came(input in proptest::collection::vec(proptest::num::u8::ANY, 0..512)) {
        let (passed, _, _) = feed(&input, 1);
        proptest::prop_assert!(passed.len() <= input.len());
        proptest::prop_assert_eq!(feed(&input, 1), feed(&input, usize::MAX));
    }

    #[test]
    fn mutated_requests_are_judged_alike_however_they_arrive(
        at in 0_usize..120, byte in proptest::num::u8::ANY, piece in 1_usize..9
    ) {
        let mut input = b"POST /api/issues/PAP-1/comments HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nA: b\r\n\r\nGET / HTTP/1.1\r\n\r\n".to_vec();
        let at = at.min(input.len() - 1);
        input[at] = byte;
        proptest::prop_assert_eq!(feed(&input, piece), feed(&input, usize::MAX));
    }
}
