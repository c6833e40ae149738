//! Frames that are written and read again, and those that are none.

use super::*;

fn read(message: &[u8]) -> Result<Vec<Frame>, FrameFault> {
    Frames::of(Bytes::copy_from_slice(message)).collect()
}

fn raw(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![kind, flags, 0, 0];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

fn one_of_each() -> Vec<Frame> {
    let head = RequestHead {
        method: "POST".into(),
        path: "/api/ä".into(),
        query: "a=1".into(),
        host: "relay.example".into(),
        headers: vec![("x".into(), "y".into())],
        received: 5,
        deadline: Some(9),
        run: None,
    };
    vec![
        Frame::Hello(Hello {
            v: 1,
            bridge_id: "b".into(),
            epoch: 7,
            max_frame: 65536,
            window: 1,
            conn_window: 2,
        }),
        Frame::RequestHead {
            stream: 1,
            end: false,
            head,
        },
        Frame::Data {
            stream: 1,
            end: true,
            bytes: Bytes::from_static(b"abc"),
        },
        Frame::ResponseHead {
            stream: 1,
            end: true,
            head: ResponseHead {
                status: 204,
                headers: vec![],
            },
        },
        Frame::Reset {
            stream: 2,
            code: ResetCode::Other(77),
            text: "gone".into(),
        },
        Frame::Window { stream: 0, credit: 5 },
        Frame::Window {
            stream: u32::MAX,
            credit: u32::MAX,
        },
        Frame::Ping(*b"12345678"),
        Frame::Pong(*b"12345678"),
        Frame::GoAway {
            last_stream: 3,
            code: 0,
            text: String::new(),
        },
    ]
}

#[test]
fn what_is_written_is_read_again_in_one_message() {
    let frames = one_of_each();
    let mut message = BytesMut::new();
    for frame in &frames {
        frame.write(&mut message);
    }

    assert_eq!(read(&message), Ok(frames));
}

#[test]
fn a_message_that_ends_anywhere_within_a_frame_is_cut() {
    for frame in one_of_each() {
        let mut message = BytesMut::new();
        frame.write(&mut message);
        for end in 0..message.len() {
            assert_eq!(
                read(message.get(..end).unwrap()),
                Err(FrameFault::Cut),
                "{frame:?} {end}"
            );
        }
    }
}

#[test]
fn a_frame_that_is_not_exactly_of_its_form_is_a_fault() {
    let mut reserved = raw(DATA, 0, 1, b"");
    reserved[2] = 1;
    let rows = [
        ("reserved", reserved),
        ("flag", raw(DATA, 2, 1, b"")),
        ("end of a window", raw(WINDOW, END, 1, &[0, 0, 0, 1])),
        ("data of no stream", raw(DATA, 0, 0, b"x")),
        ("reset of no stream", raw(RESET, 0, 0, &[0, 0, 0, 1])),
        ("hello of a stream", raw(HELLO, 0, 1, b"{}")),
        ("ping of a stream", raw(PING, 0, 1, &[0; 8])),
        ("no credit", raw(WINDOW, 0, 1, &[0; 4])),
        ("short window", raw(WINDOW, 0, 1, &[1; 3])),
        ("short ping", raw(PING, 0, 0, &[0; 7])),
        ("short reset", raw(RESET, 0, 1, &[0; 3])),
        ("text", raw(RESET, 0, 1, &[0, 0, 0, 1, 0xff])),
        ("json", raw(REQUEST_HEAD, 0, 1, b"{\"method\":1}")),
        (
            "status",
            raw(RESPONSE_HEAD, 0, 1, b"{\"status\":-1,\"headers\":[]}"),
        ),
    ];
    for (what, message) in rows {
        assert!(matches!(read(&message), Err(FrameFault::Form(_))), "{what}");
    }
    assert_eq!(read(&raw(10, 0, 0, b"")), Err(FrameFault::Unknown(10)));
    assert_eq!(read(&raw(0, 0, 0, b"")), Err(FrameFault::Unknown(0)));
}

#[test]
fn a_length_over_the_limit_is_a_fault_before_its_bytes_are_there() {
    let mut message = raw(DATA, 0, 1, b"");
    message.truncate(8);
    message.extend_from_slice(&65_537_u32.to_be_bytes());
    assert!(matches!(
        read(&message),
        Err(FrameFault::TooLong { bytes: 65_537, .. })
    ));

    let long = vec![0; MESSAGE_LIMIT_BYTES + 1];
    assert!(matches!(read(&long), Err(FrameFault::TooLong { .. })));
}

#[test]
fn nothing_follows_a_fault() {
    let message = [raw(99, 0, 0, b""), raw(PING, 0, 0, &[0; 8])].concat();

    let mut frames = Frames::of(message.into());

    assert!(frames.next().unwrap().is_err());
    assert_eq!(frames.next(), None);
}

#[test]
fn a_long_text_is_cut_between_characters() {
    let mut message = BytesMut::new();
    let frame = Frame::Reset {
        stream: 1,
        code: ResetCode::Cancel,
        text: "ä".repeat(TEXT_LIMIT_BYTES),
    };
    frame.write(&mut message);

    let frames = read(&message).unwrap();
    let [Frame::Reset { text, .. }] = frames.as_slice() else {
        panic!("{frames:?}")
    };
    assert_eq!(text.chars().count(), TEXT_LIMIT_BYTES / 2);
}
