//! `multipart/form-data`, read and written.

use bytes::Bytes;

/// One part of a form.
pub(super) struct Part {
    pub(super) name: String,
    pub(super) bytes: Bytes,
}

/// The parts of a body; `None` where it is not what its content type says.
pub(super) fn read(content_type: &str, body: &Bytes) -> Option<Vec<Part>> {
    let boundary = content_type.split_once("boundary=")?.1;
    let boundary = boundary.split(';').next()?.trim().trim_matches('"');
    let mark = format!("\r\n--{boundary}");
    // The first boundary has no line end ahead of it.
    let mut at = find(body, &mark.as_bytes()[2..])? + mark.len() - 2;
    let mut parts = vec![];
    loop {
        let rest = body.get(at..)?;
        if rest.starts_with(b"--") {
            return Some(parts);
        }
        let head_length = find(rest, b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(rest.get(..head_length)?).into_owned();
        let start = at + head_length + 4;
        let length = find(body.get(start..)?, mark.as_bytes())?;
        parts.push(Part {
            name: parameter(&head, "name")?,
            bytes: body.slice(start..start + length),
        });
        at = start + length + mark.len();
    }
}

/// A body of these parts (name, file name, bytes) and its content type.
pub(super) fn write(parts: &[(&str, String, Bytes)]) -> (String, Bytes) {
    let boundary = super::world::random_name();
    let mut body = vec![];
    for (name, file, bytes) in parts {
        let head = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"{file}\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        );
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(bytes);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    (format!("multipart/form-data; boundary={boundary}"), body.into())
}

fn parameter(head: &str, name: &str) -> Option<String> {
    // The space keeps `name` from being found in `filename`.
    let value = head.split_once(&format!(" {name}=\""))?.1;
    Some(value.split_once('"')?.0.to_owned())
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
