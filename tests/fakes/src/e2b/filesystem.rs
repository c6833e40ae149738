//! `filesystem.Filesystem` without its watchers, and `/files`.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use http::StatusCode;
use serde_json::{Value, json};

use super::control::parameters;
use super::reply::{self, Reply};
use super::rpc::{self, Fault};
use super::sandbox::{Sandbox, time};

/// Answers one call.
pub(super) fn unary(sandbox: &Sandbox, method: &str, body: &[u8]) -> Result<Value, Fault> {
    let request = rpc::parse(body)?;
    let path = |name: &str| sandbox.resolve(request[name].as_str().unwrap_or_default());
    match method {
        "Stat" => Ok(json!({"entry": entry(&path("path"))?})),
        "ListDir" => {
            let depth = request["depth"].as_u64().unwrap_or(1).max(1);
            let mut entries = vec![];
            list(&path("path"), depth, &mut entries)?;
            Ok(json!({ "entries": entries }))
        }
        "MakeDir" => {
            let path = path("path");
            if path.is_dir() {
                return Err(Fault::new(
                    "already_exists",
                    format!("directory already exists: {}", path.display()),
                ));
            }
            fs::create_dir_all(&path).map_err(|error| fault(&path, &error))?;
            Ok(json!({"entry": entry(&path)?}))
        }
        "Move" => {
            let (source, destination) = (path("source"), path("destination"));
            if let Some(parent) = destination.parent() {
                fs::create_dir_all(parent).map_err(|error| fault(parent, &error))?;
            }
            fs::rename(&source, &destination).map_err(|error| fault(&source, &error))?;
            Ok(json!({"entry": entry(&destination)?}))
        }
        "Remove" => {
            let path = path("path");
            let removed = if path.is_dir() && !path.is_symlink() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            match removed {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(fault(&path, &error)),
                Ok(()) | Err(_) => Ok(json!({})),
            }
        }
        _ => Err(Fault::new("unimplemented", format!("{method} is not played"))),
    }
}

fn list(folder: &Path, depth: u64, entries: &mut Vec<Value>) -> Result<(), Fault> {
    if !folder.exists() {
        return Err(Fault::new(
            "not_found",
            format!("directory not found: {}", folder.display()),
        ));
    }
    let read = fs::read_dir(folder).map_err(|_| {
        Fault::new(
            "invalid_argument",
            format!("path is not a directory: {}", folder.display()),
        )
    })?;
    let mut paths: Vec<_> = read.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    for path in paths {
        entries.push(entry(&path)?);
        if depth > 1 && path.is_dir() && !path.is_symlink() {
            list(&path, depth - 1, entries)?;
        }
    }
    Ok(())
}

fn entry(path: &Path) -> Result<Value, Fault> {
    let metadata = fs::symlink_metadata(path).map_err(|error| fault(path, &error))?;
    let kind = if metadata.is_symlink() {
        "FILE_TYPE_SYMLINK"
    } else if metadata.is_dir() {
        "FILE_TYPE_DIRECTORY"
    } else {
        "FILE_TYPE_FILE"
    };
    let mode = metadata.permissions().mode() & 0o7777;
    let mut entry = json!({
        "name": name(path),
        "type": kind,
        "path": path,
        // 64 bits are text in this encoding.
        "size": metadata.size().to_string(),
        "mode": mode,
        "permissions": permissions(metadata.is_dir(), mode),
        "owner": "user",
        "group": "user",
        "modifiedTime": time(metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH)),
    });
    if let Ok(target) = fs::read_link(path) {
        entry["symlinkTarget"] = json!(target);
    }
    Ok(entry)
}

fn name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn permissions(folder: bool, mode: u32) -> String {
    let bits = (0..9).map(|bit| match (mode >> (8 - bit) & 1, bit % 3) {
        (0, _) => '-',
        (_, 0) => 'r',
        (_, 1) => 'w',
        _ => 'x',
    });
    [if folder { 'd' } else { '-' }].into_iter().chain(bits).collect()
}

fn fault(path: &Path, error: &io::Error) -> Fault {
    let code = if error.kind() == ErrorKind::NotFound {
        "not_found"
    } else if error.kind() == ErrorKind::PermissionDenied {
        "permission_denied"
    } else {
        "internal"
    };
    Fault::new(code, format!("{}: {error}", path.display()))
}

/// `GET` and `POST /files`.
pub(super) fn files(sandbox: &Sandbox, method: &str, query: &str, content_type: &str, body: &[u8]) -> Reply {
    let query = parameters(query);
    if let Err(fault) = sandbox.check_user(query.get("username").map(String::as_str)) {
        return reply::fault(401, &fault.message);
    }
    let path = sandbox.resolve(query.get("path").map(String::as_str).unwrap_or_default());
    match method {
        "GET" => match fs::read(&path) {
            Ok(bytes) => Ok(reply::with_type(
                StatusCode::OK,
                "application/octet-stream",
                reply::full(bytes),
            )),
            Err(_) if path.is_dir() => {
                reply::fault(400, &format!("path '{}' is a directory", path.display()))
            }
            Err(_) => reply::fault(404, &format!("path '{}' does not exist", path.display())),
        },
        "POST" if content_type.starts_with("application/octet-stream") => write_all([(path, body)]),
        "POST" => match form(content_type, body) {
            Some(files) => {
                let path_of = |name: String| {
                    if query.contains_key("path") {
                        path.clone()
                    } else {
                        sandbox.resolve(&name)
                    }
                };
                write_all(files.into_iter().map(|(name, bytes)| (path_of(name), bytes)))
            }
            None => reply::fault(400, "error parsing multipart form"),
        },
        _ => reply::fault(405, "method not allowed"),
    }
}

fn write_all<'a>(files: impl IntoIterator<Item = (PathBuf, &'a [u8])>) -> Reply {
    let mut written = vec![];
    for (path, bytes) in files {
        let parents = path.parent().map_or(Ok(()), fs::create_dir_all);
        if let Err(error) = parents.and_then(|()| fs::write(&path, bytes)) {
            return reply::fault(500, &format!("error writing file: {error}"));
        }
        written.push(json!({"name": name(&path), "path": path, "type": "file"}));
    }
    reply::json(200, &Value::from(written))
}

/// The files of a multipart form, each with its name.
fn form<'a>(content_type: &str, body: &'a [u8]) -> Option<Vec<(String, &'a [u8])>> {
    let boundary = content_type.split_once("boundary=")?.1.trim_matches('"');
    let mark = format!("--{boundary}");
    let mut files = vec![];
    let mut rest = body.get(find(body, mark.as_bytes())? + mark.len()..)?;
    while !rest.starts_with(b"--") {
        let end = find(rest, format!("\r\n{mark}").as_bytes())?;
        let part = rest.get(2..end)?;
        let blank = find(part, b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&part[..blank]).into_owned();
        let file = head
            .split_once("filename=\"")
            .and_then(|(_, rest)| rest.split_once('"'));
        files.extend(file.map(|(name, _)| (name.to_owned(), &part[blank + 4..])));
        rest = rest.get(end + 2 + mark.len()..)?;
    }
    Some(files)
}

fn find(text: &[u8], word: &[u8]) -> Option<usize> {
    text.windows(word.len()).position(|window| window == word)
}
