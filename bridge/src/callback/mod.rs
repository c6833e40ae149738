//! The path of one callback, from a byte stream or a message to its answer.
//!
//! Reading order is folder order: accept (gate and hyper) → authenticate → read → decide → throttle → forward →
//! answer, and record around them all. Each step eats the previous one's result, so that none can be skipped.
//! `docs/request-path.md` walks through it with an example.

mod accept;
mod authenticate;
mod read;
mod introspect;
mod decide;
mod throttle;
mod forward;
mod answer;
mod record;
mod trail;

mod body;
mod refusal;

use http::{HeaderValue, Method, Response};

pub(crate) use accept::{message, stream};
pub(crate) use answer::AnswerBody;
pub(crate) use body::UpstreamBody;

use accept::Arrived;
use read::Asked;
use record::Record;
use refusal::Refusal;

/// Answers one callback; never fails, and never leaves one unrecorded.
pub(crate) async fn serve(mut arrived: Arrived) -> Response<AnswerBody> {
    let request_id = arrived.request_id;
    let head_only = arrived.method == Method::HEAD;
    let mut record = Record::begin(&mut arrived);
    let cut = arrived.outlives_cut.then(|| arrived.session.cut.clone());
    let safe = forward::is_safe(&arrived.method);
    let answered = match cut {
        None => steps(arrived, &mut record).await,
        Some(cut) => tokio::select! {
            answered = steps(arrived, &mut record) => answered,
            () = cut.cancelled() => Err(cut_off(safe)),
        },
    };
    let mut response = match answered {
        Ok(response) => response,
        Err(refusal) => {
            record.refused(&refusal);
            refusal.answer(request_id, head_only)
        }
    };
    let mut text = uuid::Uuid::encode_buffer();
    if let Ok(id) = HeaderValue::from_str(request_id.hyphenated().encode_lower(&mut text)) {
        response.headers_mut().insert(answer::REQUEST_ID, id);
    }
    record.answered(response)
}

/// What is told to a caller whose session is cut in the middle of its callback.
fn cut_off(safe: bool) -> Refusal {
    if safe {
        Refusal::Unavailable {
            why: "the session has ended",
        }
    } else {
        // It may have been sent already; the cautious answer is true in either case.
        Refusal::Indeterminate("the session ended before the answer came")
    }
}

async fn steps(arrived: Arrived, record: &mut Record) -> Result<Response<AnswerBody>, Refusal> {
    let caller = authenticate::session(arrived)?;
    let request = match read::canonical(caller, record)? {
        Asked::Api(request) => request,
        Asked::Bridge(question) => {
            record.asks_bridge()?;
            return introspect::answer(&question).await;
        }
    };
    let permit = decide::permit(request, record)?;
    let mut admitted = throttle::admit(permit).await?;
    record.dispatches(&mut admitted).await?;
    let reply = forward::once(admitted).await;
    record.replied(reply.is_ok());
    reply.map(answer::head_and_body)
}

#[cfg(test)]
mod tests;
