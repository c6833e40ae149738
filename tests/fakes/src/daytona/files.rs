//! Files of a sandbox: up, down, listed, moved, deleted.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use bytes::Bytes;
use serde_json::{Value, json};

use super::http::{Answer, Asked, answer, error, raw};
use super::multipart;
use super::toolbox::Inside;

pub(super) fn route(inside: &Inside, asked: &Asked, method: &str, rest: &[&str]) -> Answer {
    let done = match (method, rest) {
        ("GET", []) => list(inside, asked),
        ("DELETE", []) => delete(inside, asked),
        ("GET", ["info"]) => named(inside, asked, "path", |path| Ok(answer(200, &described(path)?))),
        ("POST", ["folder"]) => folder(inside, asked),
        ("POST", ["move"]) => rename(inside, asked),
        ("POST", ["permissions"]) => permissions(inside, asked),
        ("POST", ["upload" | "upload-v2"]) => upload(inside, asked),
        ("POST", ["bulk-upload"]) => bulk_upload(inside, asked),
        ("GET", ["download"]) => named(inside, asked, "path", |path| {
            Ok(raw(200, "application/octet-stream", fs::read(path)?.into()))
        }),
        ("POST", ["bulk-download"]) => Ok(bulk_download(inside, &asked.json())),
        _ => Ok(error(404, "NOT_FOUND", "Cannot find the path")),
    };
    done.unwrap_or_else(|fault| {
        let (status, code) = if fault.kind() == io::ErrorKind::NotFound {
            (404, "FILE_NOT_FOUND")
        } else if fault.kind() == io::ErrorKind::PermissionDenied {
            (403, "FILE_ACCESS_DENIED")
        } else {
            (400, "BAD_REQUEST")
        };
        error(status, code, &fault.to_string())
    })
}

fn named(
    inside: &Inside,
    asked: &Asked,
    key: &str,
    work: impl FnOnce(&Path) -> io::Result<Answer>,
) -> io::Result<Answer> {
    match asked.query(key) {
        Some(path) if !path.is_empty() => work(&inside.path(path)),
        _ => Ok(error(400, "BAD_REQUEST", &format!("{key} is required"))),
    }
}

fn list(inside: &Inside, asked: &Asked) -> io::Result<Answer> {
    let folder = inside.path(asked.query("path").unwrap_or("."));
    let entries = fs::read_dir(folder)?;
    let described: io::Result<Vec<Value>> = entries.map(|entry| described(&entry?.path())).collect();
    Ok(answer(200, &json!(described?)))
}

fn described(path: &Path) -> io::Result<Value> {
    let metadata = fs::metadata(path)?;
    let mode = metadata.permissions().mode() & 0o7777;
    Ok(json!({
        "name": path.file_name().map(|name| name.to_string_lossy()),
        "isDir": metadata.is_dir(),
        "size": metadata.len(),
        "permissions": format!("{mode:04o}"),
        "mode": format!("{mode:o}"),
        "modTime": "2026-01-01T00:00:00Z",
        "owner": "daytona",
        "group": "daytona",
    }))
}

fn delete(inside: &Inside, asked: &Asked) -> io::Result<Answer> {
    let recursive = asked.query("recursive") == Some("true");
    named(inside, asked, "path", |path| {
        if !path.is_dir() {
            fs::remove_file(path)?;
        } else if recursive {
            fs::remove_dir_all(path)?;
        } else {
            return Ok(error(
                400,
                "BAD_REQUEST",
                "cannot delete directory without recursive flag",
            ));
        }
        Ok(answer(204, &Value::Null))
    })
}

fn folder(inside: &Inside, asked: &Asked) -> io::Result<Answer> {
    let mode = mode(asked);
    named(inside, asked, "path", |path| {
        let new = !path.exists();
        fs::create_dir_all(path)?;
        if let Some(mode) = mode.filter(|_| new) {
            fs::set_permissions(path, mode)?;
        }
        Ok(answer(201, &Value::Null))
    })
}

fn rename(inside: &Inside, asked: &Asked) -> io::Result<Answer> {
    let Some(destination) = asked.query("destination") else {
        return Ok(error(400, "BAD_REQUEST", "destination is required"));
    };
    named(inside, asked, "source", |source| {
        fs::rename(source, inside.path(destination))?;
        Ok(answer(200, &Value::Null))
    })
}

fn permissions(inside: &Inside, asked: &Asked) -> io::Result<Answer> {
    let mode = mode(asked);
    named(inside, asked, "path", |path| {
        if let Some(mode) = mode {
            fs::set_permissions(path, mode)?;
        }
        Ok(answer(200, &Value::Null))
    })
}

fn mode(asked: &Asked) -> Option<fs::Permissions> {
    let mode = u32::from_str_radix(asked.query("mode")?, 8).ok()?;
    Some(fs::Permissions::from_mode(mode))
}

fn upload(inside: &Inside, asked: &Asked) -> io::Result<Answer> {
    let parts = form(asked)?;
    let file = parts.into_iter().find(|part| part.name == "file");
    let file = file.ok_or_else(|| io::Error::other("no part `file`"))?;
    named(inside, asked, "path", |path| {
        put(path, &file.bytes)?;
        Ok(answer(200, &Value::Null))
    })
}

fn bulk_upload(inside: &Inside, asked: &Asked) -> io::Result<Answer> {
    let parts = form(asked)?;
    let paths = parts.iter().filter_map(|part| {
        let number = part.name.strip_prefix("files[")?.strip_suffix("].path")?;
        Some((number, String::from_utf8_lossy(&part.bytes).into_owned()))
    });
    for (number, path) in paths {
        let name = format!("files[{number}].file");
        let file = parts.iter().find(|part| part.name == name);
        let file = file.ok_or_else(|| io::Error::other(format!("no part `{name}`")))?;
        put(&inside.path(&path), &file.bytes)?;
    }
    Ok(answer(200, &Value::Null))
}

fn form(asked: &Asked) -> io::Result<Vec<multipart::Part>> {
    let content_type = asked.header("content-type").unwrap_or_default();
    multipart::read(content_type, &asked.body).ok_or_else(|| io::Error::other("no multipart form"))
}

fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, bytes)
}

fn bulk_download(inside: &Inside, request: &Value) -> Answer {
    let paths = request
        .get("paths")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let parts: Vec<(&str, String, Bytes)> = paths
        .filter_map(Value::as_str)
        .map(|path| match fs::read(inside.path(path)) {
            Ok(bytes) => ("file", path.to_owned(), bytes.into()),
            Err(fault) => ("error", path.to_owned(), fault.to_string().into()),
        })
        .collect();
    let (content_type, body) = multipart::write(&parts);
    raw(200, &content_type, body)
}
