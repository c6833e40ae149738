//! What was seen on the wire of a real server inside a sandbox (version 0.6.13), asserted of the fake: one row a fact.
//!
//! Here: the table. In [`messages`], [`streams`], [`ends`] and [`service`] the facts. Not in the table, and not played:
//! the protobuf codec beside JSON. Read next: [`super::caller`].

mod messages;
mod streams;
mod ends;
mod service;

use futures_util::future::BoxFuture;

use super::caller::{Caller, LIMIT};

type Fact = for<'a> fn(&'a Caller) -> BoxFuture<'a, ()>;

/// Each on a sandbox of its own.
const FACTS: &[(&str, Fact)] = &[
    ("start, data, end and an empty last frame", |caller| {
        Box::pin(messages::messages(caller))
    }),
    ("what is a default is left out", |caller| {
        Box::pin(messages::defaults(caller))
    }),
    ("a missing program is exit 127 and a line", |caller| {
        Box::pin(messages::missing_program(caller))
    }),
    ("a missing folder is invalid_argument", |caller| {
        Box::pin(messages::missing_folder(caller))
    }),
    ("an unknown user is unauthenticated", |caller| {
        Box::pin(messages::unknown_user(caller))
    }),
    ("a unary type on a stream is 415 and nothing", |caller| {
        Box::pin(messages::wrong_type(caller))
    }),
    ("a process that is not there is 404 not_found", |caller| {
        Box::pin(messages::unknown_process(caller))
    }),
    ("the time-out kills the process, not its children", |caller| {
        Box::pin(ends::time_out(caller))
    }),
    ("a signal is exit code -1 and its name", |caller| {
        Box::pin(ends::signal(caller))
    }),
    ("output comes in pieces of at most 32 KiB", |caller| {
        Box::pin(streams::piece_size(caller))
    }),
    (
        "a pty's output comes in pieces of at most 16 KiB, 8-bit clean when raw",
        |caller| Box::pin(streams::pty(caller)),
    ),
    ("without stdin there is the end of it", |caller| {
        Box::pin(streams::no_stdin(caller))
    }),
    ("one call takes megabytes", |caller| {
        Box::pin(streams::large_input(caller))
    }),
    ("input waits until the program reads", |caller| {
        Box::pin(streams::input_waits(caller))
    }),
    (
        "a slow reader holds the program back and loses nothing",
        |caller| Box::pin(streams::slow_reader(caller)),
    ),
    ("output without a reader is lost, the process lives", |caller| {
        Box::pin(streams::no_reader(caller))
    }),
    ("an end is kept for 30 s, by pid and by tag", |caller| {
        Box::pin(ends::kept_end(caller))
    }),
    (
        "a stream of input is 8-bit clean and answered at its end",
        |caller| Box::pin(streams::stream_input(caller)),
    ),
    ("stdin can be closed twice, that of a pty never", |caller| {
        Box::pin(streams::close_stdin(caller))
    }),
    ("the end waits for all who hold the outputs", |caller| {
        Box::pin(ends::holders(caller))
    }),
    (
        "with setsid pid, group and session are one, and the group can be ended",
        |caller| Box::pin(ends::group(caller)),
    ),
    ("a keep-alive comes when nothing else does", |caller| {
        Box::pin(ends::keep_alive(caller))
    }),
    ("a list shows what was asked for", |caller| {
        Box::pin(service::list(caller))
    }),
    ("files are written and read raw", |caller| {
        Box::pin(service::files(caller))
    }),
    ("without the token it is 401 with a number", |caller| {
        Box::pin(service::no_token(caller))
    }),
    ("health is 204", |caller| Box::pin(service::health(caller))),
    ("HTTP/2 in clear is refused", |caller| {
        Box::pin(service::no_http2(caller))
    }),
    ("a sandbox that is gone is 502 of the edge", |caller| {
        Box::pin(service::gone(caller))
    }),
];

#[tokio::test]
async fn the_fake_has_every_fact_that_was_seen() {
    for (fact, check) in FACTS {
        println!("{fact}");
        let caller = Caller::start().await;
        tokio::time::timeout(LIMIT, check(&caller)).await.expect(fact);
    }
}
