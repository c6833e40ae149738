//! A command's events, from the head of the answer to its result.
//!
//! Here: which event does what, the silence after which a stream is given up, and what of a repeated stream is known
//! already. Not here: the request (`exec`), the events' form (`sse`), what must be signed (`stream`).
//!
//! Output is handed over as it comes. That it was the command's is known with the signature behind it: a stream whose end
//! is not signed has no result, whatever it said.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use serde::Deserialize;
use tokio::time::Instant;

use super::api::Answer;
use super::demand::content_type;
use super::exec::Watched;
use super::refusal::is_of;
use super::signed::SignedStream;
use super::sse::{Event, EventReader};
use super::stream::{SILENCE, Stream, Taken, not_signed};
use crate::{ExecutionResult, OutputSink, OutputStream};

/// Of one event. A repeated request is answered with all output in one; the Worker holds 16 MiB of each.
const EVENT_LIMIT_BYTES: usize = 24 * 1024 * 1024;

/// Where a command's output goes.
pub(super) struct Follower {
    pub(super) watched: Watched,
    pub(super) sink: Option<Arc<dyn OutputSink>>,
    pub(super) keep: usize,
}

/// What is known of a command, over all of its streams.
#[derive(Debug, Default)]
pub(super) struct Followed {
    pub(super) result: ExecutionResult,
    /// Its shell is done with it.
    pub(super) whole: bool,
    /// Of each output, what was taken as the Worker sent it.
    taken: [Taken; 2],
}

/// Why a stream ended without a result.
#[derive(Debug)]
pub(super) enum Unfinished {
    /// The connection broke; the command may run on.
    Cut(String),
    /// What came is no stream of ours.
    Broken(String),
    /// The Worker says that it did not work.
    Refused(String),
    /// The Worker says that the lease is lost.
    LeaseLost(String),
    /// What was said is not shown to be the Worker's.
    Unproven(String),
}

/// The data of an output event.
#[derive(Deserialize)]
struct Output {
    data: String,
}

/// The data of the last event, without the outputs that it repeats.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Complete {
    exit_code: Option<i32>,
    #[serde(default)]
    timed_out: bool,
}

#[derive(Deserialize)]
struct Failed {
    #[serde(default)]
    error: String,
    #[serde(default)]
    code: String,
}

impl Follower {
    /// Follows one stream. What an earlier one of the same command brought is not handed over again.
    pub(super) async fn follow(
        &mut self,
        answer: Answer,
        end: Instant,
        followed: &mut Followed,
    ) -> Result<(), Unfinished> {
        let Answer { response, demand } = answer;
        if !is_of(response.headers(), "text/event-stream") {
            let why = "a command's answer is no event stream".to_owned();
            return Err(if demand.is_some() {
                Unfinished::Unproven(why)
            } else {
                Unfinished::Broken(why)
            });
        }
        let signed = demand.map(|demand| SignedStream::new(demand, content_type(response.headers())));
        let mut stream = Stream::new(signed, &followed.taken);
        let mut body = response.into_body();
        let mut reader = EventReader::new(EVENT_LIMIT_BYTES);
        loop {
            let silent = stream.silent_until();
            let frame = match tokio::time::timeout_at(silent.min(end), body.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => return Err(Unfinished::Cut(error.to_string())),
                Ok(None) => return Err(Unfinished::Cut("it ended without a result".to_owned())),
                Err(_) if stream.may_conclude() => {
                    self.conclude(followed).await;
                    return Ok(());
                }
                Err(_) if Instant::now() >= end => {
                    return Err(Unfinished::Cut("its time is over".to_owned()));
                }
                Err(_) if stream.ended.is_some() => return Err(not_signed()),
                Err(_) => {
                    return Err(Unfinished::Cut(format!(
                        "it was silent for {} s",
                        SILENCE.as_secs()
                    )));
                }
            };
            let Ok(bytes) = frame.into_data() else { continue };
            if self.bytes(&bytes, &mut reader, &mut stream, followed).await? {
                return Ok(());
            }
        }
    }

    /// Takes bytes of the stream; true once the result is there.
    async fn bytes(
        &mut self,
        mut bytes: &[u8],
        reader: &mut EventReader,
        stream: &mut Stream,
        followed: &mut Followed,
    ) -> Result<bool, Unfinished> {
        let mut events = Vec::new();
        while !bytes.is_empty() {
            let (piece, whole, rest) = match &mut stream.signed {
                Some(signed) => signed.next(bytes).map_err(Unfinished::Unproven)?,
                None => (bytes, false, &[][..]),
            };
            bytes = rest;
            reader
                .feed(piece, &mut events)
                .map_err(|fault| Unfinished::Broken(fault.to_string()))?;
            for event in events.drain(..) {
                if self.event(event, stream, followed).await? {
                    return Ok(true);
                }
            }
            if let (Some(signed), true) = (&mut stream.signed, whole) {
                signed.pass();
            }
            if stream.ended.is_none() && self.watched.with(|decoder| decoder.exit()).is_some() {
                stream.ended = Some(Instant::now());
            }
            // Whoever holds the output of an ended command may write for ever.
            if stream.closing_is_over() && stream.may_conclude() {
                self.conclude(followed).await;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes one event; true for the last one.
    async fn event(
        &mut self,
        event: Event,
        stream: &mut Stream,
        followed: &mut Followed,
    ) -> Result<bool, Unfinished> {
        let broken = |what: &str| Unfinished::Broken(format!("the Worker's event {what}"));
        match event.name.as_str() {
            name @ ("stdout" | "stderr") => {
                if event.cut {
                    return Err(broken("is longer than any output may be"));
                }
                let output: Output =
                    serde_json::from_slice(&event.data).map_err(|_| broken("is not of its form"))?;
                let which = if name == "stdout" {
                    OutputStream::Stdout
                } else {
                    OutputStream::Stderr
                };
                self.output(which, &output.data, stream, followed).await?;
                Ok(false)
            }
            "proof" => {
                stream.part(&event.data)?;
                Ok(false)
            }
            "result" => {
                let told = serde_json::from_slice(&event.data).map_err(|_| broken("is not of its form"))?;
                stream.told = Some(told);
                Ok(false)
            }
            "complete" => {
                let complete = match stream.proven("complete", &event.data)? {
                    Some(told) => Complete {
                        exit_code: told.exit_code,
                        timed_out: told.timed_out,
                    },
                    None => complete(&event.data).ok_or_else(|| broken("is not of its form"))?,
                };
                self.conclude(followed).await;
                followed.whole = true;
                followed.result.timed_out = complete.timed_out;
                if complete.timed_out {
                    followed.result.exit_code = None;
                } else if followed.result.exit_code.is_none() {
                    // Not even the wrapper ran to its end; its shell says why.
                    followed.result.exit_code = complete.exit_code;
                }
                Ok(true)
            }
            "error" => {
                let failed = match stream.proven("error", &event.data)? {
                    Some(told) => Failed {
                        error: told.error,
                        code: told.code,
                    },
                    None => serde_json::from_slice(&event.data).map_err(|_| broken("is not of its form"))?,
                };
                let words: String = failed
                    .error
                    .chars()
                    .filter(|letter| !letter.is_control())
                    .take(300)
                    .collect();
                Err(match failed.code.as_str() {
                    "sandbox_state_lost" => Unfinished::LeaseLost(words),
                    _ => Unfinished::Refused(words),
                })
            }
            // A later version may say more.
            _ => Ok(false),
        }
    }

    async fn output(
        &mut self,
        which: OutputStream,
        text: &str,
        stream: &mut Stream,
        followed: &mut Followed,
    ) -> Result<(), Unfinished> {
        let [seen_out, seen_err] = &mut stream.seen;
        let [taken_out, taken_err] = &mut followed.taken;
        let [again_out, again_err] = &mut stream.again;
        let (seen, taken, again) = match which {
            OutputStream::Stdout => (seen_out, taken_out, again_out),
            OutputStream::Stderr => (seen_err, taken_err, again_err),
        };
        let known = taken.bytes.saturating_sub(*seen).min(text.len());
        let (old, new) = text.as_bytes().split_at(known);
        stream.rests = false;
        *seen += text.len();
        again.add(old);
        taken.add(new);
        let mut decoded = Vec::new();
        self.watched
            .with(|decoder| match which {
                OutputStream::Stdout => decoder.stdout(new, &mut decoded),
                OutputStream::Stderr => decoder.stderr(new, &mut decoded),
            })
            .map_err(|fault| Unfinished::Broken(fault.to_string()))?;
        self.hand_over(which, decoded, &mut followed.result).await;
        Ok(())
    }

    async fn hand_over(&self, stream: OutputStream, bytes: Vec<u8>, result: &mut ExecutionResult) {
        if bytes.is_empty() {
            return;
        }
        let kept = match stream {
            OutputStream::Stdout => &mut result.stdout,
            OutputStream::Stderr => &mut result.stderr,
        };
        let room = self.keep.saturating_sub(kept.len());
        kept.extend_from_slice(bytes.get(..room).unwrap_or(&bytes));
        result.truncated |= bytes.len() > room;
        if let Some(sink) = &self.sink {
            sink.chunk(stream, Bytes::from(bytes)).await;
        }
    }

    /// The command has ended; what was held back for marks is output.
    async fn conclude(&self, followed: &mut Followed) {
        let mut held = Vec::new();
        self.watched.with(|decoder| decoder.finish(&mut held));
        self.hand_over(OutputStream::Stderr, held, &mut followed.result)
            .await;
        followed.result.exit_code = self.watched.with(|decoder| decoder.exit());
    }
}

/// Reads the last event. All output may stand in it, so that it may have been cut: what matters stands in front of that.
fn complete(data: &[u8]) -> Option<Complete> {
    if let Ok(complete) = serde_json::from_slice(data) {
        return Some(complete);
    }
    let mark = b",\"stdout\":";
    let at = data
        .windows(mark.len())
        .take(1024)
        .position(|window| window == mark)?;
    let mut head = data.get(..at)?.to_vec();
    head.push(b'}');
    serde_json::from_slice(&head).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_is_read_from_the_begin_of_an_event_that_was_cut() {
        let whole = br#"{"exitCode":7,"signal":null,"timedOut":false,"stdout":"a\"b","stderr":""}"#;

        for end in [whole.len(), 60] {
            let complete = complete(whole.get(..end).unwrap()).unwrap();

            assert_eq!(
                (complete.exit_code, complete.timed_out),
                (Some(7), false),
                "{end}"
            );
        }
        let late = complete(br#"{"exitCode":null,"signal":null,"timedOut":true,"stdout":"x"#).unwrap();
        assert_eq!((late.exit_code, late.timed_out), (None, true));
        for bad in [&b"{}x"[..], b"", br#"{"exitCode":"7","stdout":"x"#] {
            assert!(complete(bad).is_none());
        }
    }
}
