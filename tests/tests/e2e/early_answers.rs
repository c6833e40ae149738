//! Answers that come while the body is still coming, through a gateway: whole, true, and nothing else suffers.

use std::time::Duration;

use paperclip_bridge_tests::{Answer, Broken, Wire, World, eventually};

const ME: &str = "/api/agents/me";
const COMMENTS: &str = "/api/issues/PAP-1/comments";
const JSON: (&str, &str) = ("content-type", "application/json");
const LIMIT: usize = 256 * 1024;
/// More than every window and buffer on the way.
const BIG: usize = 24 * 1024 * 1024;

/// An upload of the world's session with another token, path or type.
#[derive(Clone, Copy)]
struct Upload<'a> {
    token: Option<&'a str>,
    target: &'a str,
    content_type: &'a str,
    /// In chunks of so many bytes; of declared length without.
    chunk: Option<usize>,
}

impl Upload<'_> {
    fn bytes(self, world: &World, body: usize) -> Vec<u8> {
        let mut agent = world.agent();
        if let Some(token) = self.token {
            token.clone_into(&mut agent.token);
        }
        let content_type = ("content-type", self.content_type);
        let Some(chunk) = self.chunk else {
            let mut bytes = agent.head("POST", self.target, &[content_type], Some(body));
            bytes.resize(bytes.len() + body, b'x');
            return bytes;
        };
        let headers = [content_type, ("transfer-encoding", "chunked")];
        let mut bytes = agent.head("POST", self.target, &headers, None);
        let mut left = body;
        while left > 0 {
            let size = chunk.min(left);
            bytes.extend_from_slice(format!("{size:x}\r\n").as_bytes());
            bytes.resize(bytes.len() + size, b'x');
            bytes.extend_from_slice(b"\r\n");
            left -= size;
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
        bytes
    }

    /// Sends it, all of it if the other side takes it, and reads the answer meanwhile.
    async fn send(self, world: &World, body: usize) -> Result<Answer, Broken> {
        let mut wire = Wire::connect(&world.agent().url).await?;
        let bytes = self.bytes(world, body);
        let mut answers = wire.exchange(&bytes, &["POST"], false).await;
        answers.pop().unwrap_or(Err(Broken::Closed))
    }
}

const COMMENT: Upload<'static> = Upload {
    token: None,
    target: COMMENTS,
    content_type: "application/json",
    chunk: None,
};

#[tokio::test]
async fn a_body_in_chunks_over_the_limit_is_413_however_it_is_cut() {
    let world = World::local()
        .args(["--tunnel", "http2_v1", "--max-body", &LIMIT.to_string()])
        .open()
        .await;

    for body in [LIMIT + 1, 4 * LIMIT] {
        for chunk in [1024, 16 * 1024, 50_000, LIMIT, LIMIT + 1] {
            for _ in 0..5 {
                let upload = Upload {
                    chunk: Some(chunk),
                    ..COMMENT
                };
                let answer = upload.send(&world, body).await;

                let answer = answer.unwrap_or_else(|broken| panic!("{body} in {chunk}: {broken:?}"));
                assert_eq!(
                    (answer.status, answer.code().as_str()),
                    (413, "body_too_large"),
                    "{body} in {chunk}: {}",
                    answer.text()
                );
            }
        }
    }

    assert_eq!(world.upstream.count(), 0);
    assert_eq!(world.agent().get(ME).await.unwrap().status, 200);
}

#[tokio::test]
async fn every_refusal_of_a_big_upload_is_whole_and_the_connection_to_the_host_works_on() {
    let world = World::local()
        .args(["--tunnel", "http2_v1", "--max-body", "32MiB"])
        .open()
        .await;
    let cases = [
        (
            Upload {
                token: Some("pcb_wrong"),
                ..COMMENT
            },
            (401, "invalid_token"),
        ),
        (
            Upload {
                target: "/api/secrets",
                ..COMMENT
            },
            (403, "route_not_allowed"),
        ),
        (
            Upload {
                target: "/api/issues/../secrets",
                ..COMMENT
            },
            (400, "path_not_canonical"),
        ),
        (
            Upload {
                content_type: "text/plain",
                ..COMMENT
            },
            (415, "content_type_not_allowed"),
        ),
    ];

    for (upload, expected) in cases {
        for chunk in [None, Some(50_000)] {
            let upload = Upload { chunk, ..upload };
            let waiting = world.agent();
            let (answer, beside) = tokio::join!(upload.send(&world, BIG), waiting.get(ME));

            let answer = answer.unwrap_or_else(|broken| panic!("{expected:?} {chunk:?}: {broken:?}"));
            assert_eq!((answer.status, answer.code().as_str()), expected, "{chunk:?}");
            assert_eq!(beside.unwrap().status, 200, "{expected:?}");
        }
    }

    assert!(world.upstream.seen().iter().all(|seen| seen.target == ME));
}

#[tokio::test]
async fn a_declared_length_over_the_limit_is_413_before_its_body_has_come() {
    let world = World::local()
        .args(["--tunnel", "http2_v1", "--max-body", &LIMIT.to_string()])
        .open()
        .await;

    for body in [LIMIT + 1, BIG] {
        let answer = COMMENT.send(&world, body).await.unwrap();

        assert_eq!((answer.status, answer.code().as_str()), (413, "body_too_large"));
    }

    assert_eq!(world.upstream.count(), 0);
    assert_eq!(world.agent().get(ME).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_big_upload_beyond_the_rate_is_429_and_whole() {
    let world = World::local()
        .args(["--tunnel", "http2_v1", "--max-body", "32MiB", "--rate", "1/h"])
        .open()
        .await;
    assert_eq!(world.agent().get(ME).await.unwrap().status, 200);

    for chunk in [None, Some(50_000)] {
        let answer = Upload { chunk, ..COMMENT }.send(&world, BIG).await.unwrap();

        assert_eq!((answer.status, answer.code().as_str()), (429, "rate_limited"));
        assert!(answer.header("retry-after").is_some());
    }
}

#[tokio::test]
async fn a_big_upload_beyond_the_byte_budget_is_503_and_whole() {
    let world = World::local()
        .args(["--tunnel", "http2_v1", "--max-body", "64MiB"])
        .open()
        .await;
    // What is declared counts from the head on. A session holds at most 64 MiB at a time.
    let half = 40 * 1024 * 1024;
    let mut stalled = Wire::connect(&world.agent().url).await.unwrap();
    let head = world.agent().head("POST", COMMENTS, &[JSON], Some(half));
    stalled.send(&head).await.unwrap();
    stalled.send(&[b'x'; 65_536]).await.unwrap();
    eventually(Duration::from_secs(20), "the first is under way", || {
        (world.upstream.count() == 1).then_some(())
    })
    .await;

    let answer = COMMENT.send(&world, half).await.unwrap();

    assert_eq!((answer.status, answer.code().as_str()), (503, "unavailable"));
    assert!(answer.header("retry-after").is_some());
    assert_eq!(world.agent().get(ME).await.unwrap().status, 200);
    assert_eq!(world.upstream.count(), 2);
}
