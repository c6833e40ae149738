//! A `multipart/form-data` body for uploads.

use bytes::{BufMut as _, Bytes, BytesMut};

/// The form of a bulk upload: each file with its path on the target. The boundary must not occur in any of them, which
/// a random one does not.
pub(super) fn upload(boundary: &str, files: &[(&str, &[u8])]) -> (String, Bytes) {
    let size: usize = files
        .iter()
        .map(|(path, bytes)| path.len() + bytes.len() + 512)
        .sum();
    let mut body = BytesMut::with_capacity(size);
    for (number, (path, bytes)) in files.iter().enumerate() {
        part(
            &mut body,
            boundary,
            &format!("name=\"files[{number}].path\""),
            path.as_bytes(),
        );
        // The file name is only a label: the path above says where it goes.
        let name = format!("name=\"files[{number}].file\"; filename=\"file\"");
        part(&mut body, boundary, &name, bytes);
    }
    body.put(format!("--{boundary}--\r\n").as_bytes());
    (format!("multipart/form-data; boundary={boundary}"), body.freeze())
}

fn part(body: &mut BytesMut, boundary: &str, name: &str, bytes: &[u8]) {
    body.put(format!("--{boundary}\r\nContent-Disposition: form-data; {name}\r\n\r\n").as_bytes());
    body.put(bytes);
    body.put(&b"\r\n"[..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_stands_behind_its_path() {
        let (content_type, body) = upload("b0", &[("/a", b"one"), ("/b", b"")]);

        assert_eq!(content_type, "multipart/form-data; boundary=b0");
        let text = String::from_utf8(body.to_vec()).unwrap();
        assert_eq!(
            text,
            "--b0\r\nContent-Disposition: form-data; name=\"files[0].path\"\r\n\r\n/a\r\n\
             --b0\r\nContent-Disposition: form-data; name=\"files[0].file\"; filename=\"file\"\r\n\r\none\r\n\
             --b0\r\nContent-Disposition: form-data; name=\"files[1].path\"\r\n\r\n/b\r\n\
             --b0\r\nContent-Disposition: form-data; name=\"files[1].file\"; filename=\"file\"\r\n\r\n\r\n--b0--\r\n"
        );
    }
}
