//! A head that is whole: what it says of itself and of its body, and whether two readers could disagree about it.
//!
//! Here: `httparse`, and the fields that have a say in where the message ends. Not here: where the head ends (`mod.rs`).

use super::{Fault, HeadLimits, HeadSeen, MAX_HEADERS, TargetJudge};

/// How long the body is.
pub(super) enum Delimited {
    Length(u64),
    Chunked,
}

pub(super) fn read_head<J: TargetJudge>(
    head: &[u8],
    limits: HeadLimits,
) -> Result<(HeadSeen<J::Fault>, Delimited), Fault> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(head) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        // The section is whole, so a parser that wants more, or stops sooner, disagrees with us about its end.
        Ok(_) => return Err(Fault::HeaderLine),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(Fault::TooManyHeaders {
                limit: limits.max_headers,
            });
        }
        Err(httparse::Error::Version) => return Err(Fault::Version),
        Err(httparse::Error::Token) => return Err(request_line_fault(head, limits)),
        Err(httparse::Error::HeaderName | httparse::Error::HeaderValue | httparse::Error::NewLine) => {
            return Err(Fault::HeaderLine);
        }
        Err(httparse::Error::Status) => return Err(Fault::RequestLine),
    }
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Err(Fault::RequestLine);
    };
    if request.headers.len() > limits.max_headers {
        return Err(Fault::TooManyHeaders {
            limit: limits.max_headers,
        });
    }
    if target.len() > limits.max_target {
        return Err(Fault::TargetTooLong {
            limit_bytes: limits.max_target,
        });
    }
    // `METHOD SP target SP HTTP/1.x`, exactly: httparse also lets more blanks through.
    let request_line = method.len() + 1 + target.len() + 9;
    if head.get(request_line..request_line + 2) != Some(b"\r\n") {
        return Err(Fault::RequestLine);
    }
    let body = delimiter(request.headers, version, method)?;
    let target_fault = match J::judge(target.as_bytes()) {
        Ok(()) if method == "CONNECT" => Some(J::connect(target.as_bytes())),
        Ok(()) => None,
        Err(fault) => Some(fault),
    };
    let seen = HeadSeen {
        request_line,
        method: method.len(),
        target_fault,
        upgrade: request
            .headers
            .iter()
            .any(|field| field.name.eq_ignore_ascii_case("upgrade")),
    };
    Ok((seen, body))
}

/// httparse stops at a byte that no target may hold; whether that is a fault of the path or of the line depends on
/// what stands around it. Both are 400, and neither is forwarded.
fn request_line_fault(head: &[u8], limits: HeadLimits) -> Fault {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or(head);
    if line.len() > limits.max_target.saturating_add(64) {
        Fault::TargetTooLong {
            limit_bytes: limits.max_target,
        }
    } else {
        Fault::RequestLine
    }
}

/// How the body is delimited, from all the fields that have a say in it.
fn delimiter(fields: &[httparse::Header<'_>], version: u8, method: &str) -> Result<Delimited, Fault> {
    let mut hosts = 0;
    let mut length = None;
    let mut chunked = false;
    let mut expectation_fault = false;
    for field in fields {
        let value = field.value.trim_ascii();
        if field.name.eq_ignore_ascii_case("host") {
            hosts += 1;
        } else if field.name.eq_ignore_ascii_case("content-length") {
            if length.is_some() {
                return Err(Fault::ContentLength);
            }
            length = Some(parse_length(value).ok_or(Fault::ContentLength)?);
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            if version == 0 {
                return Err(Fault::TransferEncodingInOneZero);
            }
            if chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Fault::TransferEncoding);
            }
            chunked = true;
        } else if field.name.eq_ignore_ascii_case("expect") && !value.eq_ignore_ascii_case(b"100-continue") {
            expectation_fault = true;
        }
    }
    match hosts {
        0 => return Err(Fault::HostMissing),
        1 => {}
        _ => return Err(Fault::HostTwice),
    }
    if chunked && length.is_some() {
        return Err(Fault::BothLengths);
    }
    if length.is_some_and(|length| length > 0) && matches!(method, "GET" | "HEAD") {
        return Err(Fault::BodyWithoutMeaning);
    }
    if expectation_fault {
        return Err(Fault::Expectation);
    }
    Ok(if chunked {
        Delimited::Chunked
    } else {
        Delimited::Length(length.unwrap_or(0))
    })
}

/// `1*DIGIT` without leading zeros: some readers take those for octal.
fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 19 || (value.len() > 1 && value.first() == Some(&b'0')) {
        return None;
    }
    value.iter().try_fold(0_u64, |number, byte| {
        byte.is_ascii_digit()
            .then(|| number * 10 + u64::from(byte - b'0'))
    })
}
