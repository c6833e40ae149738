//! One real callback from inside the target, with whatever client is there.
//!
//! Here: the script, which takes curl, node or bash, and what is made of the answer. The token travels as an agent's
//! does: never in an argv. Not here: the tunnel (`app::standing`).

use std::time::Duration;

use runners::shell::quote;
use runners::{CommandManagedRuntimeRunner, RunnerError, SecretText, Shell};
use tunnel::wire::names::variable;

use super::ground::{MARK, ended, excerpt, marked, script};
use super::report::Found;
use crate::app::Tried;

/// What is asked of the bridge itself.
pub(super) const WHOAMI: &str = "/_bridge/whoami";
/// What is asked of the API.
pub(super) const HEALTH: &str = "/api/health";

/// Calls `path` through the tunnel.
pub(super) async fn call(
    runner: &dyn CommandManagedRuntimeRunner,
    shell: Shell,
    tried: &Tried,
    path: &'static str,
    limit: Duration,
) -> Result<Found, RunnerError> {
    let mut execution = script(shell, call_script(path, limit), limit);
    execution.secret_env = tried
        .environment()
        .into_iter()
        .filter(|(name, _)| name != variable::QUEUE_DIR)
        .map(|(name, value)| (name, SecretText::new(value)))
        .collect();
    let result = runner.execute(execution).await?;
    let lines = marked(&result.stdout);
    let client = lines.iter().find_map(|line| line.strip_prefix("client "));
    let body = String::from_utf8_lossy(&result.stdout);
    let hidden = |text: String| match tried.token() {
        Some(token) => text.replace(token.expose(), "…"),
        None => text,
    };
    let Some(client) = client else {
        return Ok(Found::fail(
            "script_failed",
            hidden(format!("the script that calls {}", ended(&result))),
            "see what was found; the target's shell must be a POSIX shell",
        ));
    };
    if client == "none" {
        return Ok(Found::warn(
            "no_client",
            "the target has neither curl nor node nor bash to call with",
            "install curl there to have the way tried",
        ));
    }
    let status = status(&lines, &body);
    let ours = path != WHOAMI || body.contains(&tried.session().to_string());
    Ok(match status {
        Some(200) if ours => Found::ok(format!("GET {path} with {client}: 200")),
        Some(200) => Found::fail(
            "somebody_else",
            format!("GET {path} with {client}: 200, but not from this bridge"),
            "look at what listens at that address there, and at its proxies",
        ),
        // The way there and back works; what the API made of it is another matter.
        Some(status) if path == HEALTH => Found::warn(
            "api_answer",
            format!("GET {path} with {client}: {status}"),
            "look at the API's own log",
        ),
        Some(status) => Found::fail(
            "unexpected_answer",
            format!("GET {path} with {client}: {status}"),
            "look at what listens at that address there, and at its proxies",
        ),
        None => Found::fail(
            "no_answer",
            hidden(format!("GET {path} with {client} {}", ended(&result))),
            "look for a filter on the target's loopback, and at --log-level debug",
        ),
    })
}

/// For Node: prints the status behind our mark, then the body. Arguments: the path, the mark, milliseconds.
const BY_NODE: &str = "const [path, mark, limit] = process.argv.slice(1); const url = process.env.PAPERCLIP_API_URL + path; \
                       const headers = { authorization: `Bearer ${process.env.PAPERCLIP_API_KEY}` }; \
                       const client = require(url.split(\":\")[0]); \
                       client.get(url, { agent: false, timeout: Number(limit), headers }, (answer) => { \
                       console.log(mark + answer.statusCode); answer.pipe(process.stdout); }) \
                       .on(\"error\", (error) => { console.error(error.message); process.exit(1); });";
/// For Bash, which opens sockets by itself: prints the answer as it comes. Argument: the path.
const BY_BASH: &str = "place=${PAPERCLIP_API_URL#http://}; exec 3<>/dev/tcp/${place%:*}/${place##*:} || exit 1; \
                       printf \"GET %s HTTP/1.1\\r\\nHost: %s\\r\\nAuthorization: Bearer %s\\r\\nConnection: close\\r\\n\\r\\n\" \
                       \"$1\" \"$place\" \"$PAPERCLIP_API_KEY\" >&3; cat <&3";

/// One line of `sh`; the variables are those of an agent. `printf` is the shell's own, so the token is in no argv.
fn call_script(path: &str, limit: Duration) -> String {
    let seconds = limit.as_secs().saturating_sub(1).max(1);
    let (by_node, by_bash) = (quote(BY_NODE), quote(BY_BASH));
    format!(
        "has() {{ command -v \"$1\" >/dev/null 2>&1; }}; \
         if has curl; then echo \"{MARK}client curl\"; \
         printf \"header = \\\"Authorization: Bearer %s\\\"\\n\" \"$PAPERCLIP_API_KEY\" | \
         curl -q -sS --noproxy \"*\" -m {seconds} -K - -w \"\\\\n{MARK}status %{{http_code}}\\\\n\" \"$PAPERCLIP_API_URL{path}\"; \
         elif has node; then echo \"{MARK}client node\"; node -e {by_node} {path} \"{MARK}status \" {seconds}000; \
         elif has bash; then echo \"{MARK}client bash\"; bash -c {by_bash} bash {path}; \
         else echo \"{MARK}client none\"; fi"
    )
}

/// What a client said that tells it, or the answer's own first line.
fn status(lines: &[String], output: &str) -> Option<u16> {
    let told = lines
        .iter()
        .rev()
        .find_map(|line| line.strip_prefix("status "))
        .and_then(|status| status.trim().parse().ok())
        // curl's word for no answer at all.
        .filter(|status| *status != 0);
    told.or_else(|| {
        output
            .lines()
            .find_map(|line| line.strip_prefix("HTTP/1.1 "))
            .and_then(|rest| excerpt(rest).split(' ').next()?.parse().ok())
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::os::unix::fs::symlink;

    use super::*;

    /// What one client sent, and what the script made of the answer.
    fn called_with(client: Option<&str>) -> Option<(String, Vec<String>, String)> {
        let folder = tempfile::tempdir().unwrap();
        for tool in ["sh", "cat"].into_iter().chain(client) {
            let there = ["/usr/bin", "/bin", "/usr/local/bin"]
                .iter()
                .map(|place| std::path::Path::new(place).join(tool))
                .find(|path| path.exists())?;
            symlink(there, folder.path().join(tool)).unwrap();
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serving = client.map(|_| {
            std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
                    head.extend(byte);
                }
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\nconnection: close\r\n\r\n{\"a\":1}")
                    .unwrap();
                String::from_utf8(head).unwrap()
            })
        });
        let output = std::process::Command::new("/bin/sh")
            .args(["-c", &call_script(WHOAMI, Duration::from_secs(9))])
            .env_clear()
            .env("PATH", folder.path())
            .env("PAPERCLIP_API_URL", &url)
            .env("PAPERCLIP_API_KEY", "pcb_token")
            .output()
            .unwrap();
        let head = serving.map(|serving| serving.join().unwrap());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        Some((
            head.unwrap_or_default(),
            marked(&output.stdout),
            format!("{stdout}{said}"),
        ))
    }

    #[test]
    fn every_client_sends_the_token_and_tells_the_status_and_the_body() {
        for client in ["curl", "node", "bash"] {
            let Some((head, lines, output)) = called_with(Some(client)) else {
                continue;
            };

            assert!(
                head.starts_with("GET /_bridge/whoami HTTP/1.1\r\n"),
                "{client}: {head}{output}"
            );
            assert!(
                head.to_ascii_lowercase()
                    .contains("authorization: bearer pcb_token\r\n"),
                "{client}: {head}"
            );
            assert_eq!(lines[0], format!("client {client}"));
            assert_eq!(status(&lines, &output), Some(200), "{client}: {output}");
            assert!(output.contains("{\"a\":1}"), "{client}: {output}");
        }
    }

    #[test]
    fn without_a_client_that_is_said() {
        let (_, lines, _) = called_with(None).unwrap();

        assert_eq!(lines, ["client none"]);
    }
}
