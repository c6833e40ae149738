//! All shell text of the launch.
//!
//! Here: POSIX `sh` (dash, bash, busybox), one line each, without single quotes, backslashes and `!`, so that an SSH
//! login shell of any family is handed it as it stands. Values that go in are hex, numbers and checked names; paths go
//! in quoted. Not here: when each is run.

use runners::shell::quote;
use wire::names::variable::RECORD;

/// What our lines on stdout begin with: a login shell may print others.
pub(super) const MARK: &str = "pcb-launch ";

/// What a program is and where it belongs, as far as the scripts need it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    /// Path below the folder, such as `gateway-HEX`.
    pub(super) name: &'a str,
    /// Lower-case hex.
    pub(super) sha256: &'a str,
    /// Length in bytes.
    pub(super) size: usize,
    /// It is run by itself, so it must be executable where it lies.
    pub(super) is_binary: bool,
}

/// Functions that both installation scripts use. `d1` and `d2` are the folders in question, best first.
///
/// A folder counts only if it is a directory of our own, and no symlink: `/tmp` is everybody's.
fn folders(wanted: Wanted<'_>) -> String {
    let Wanted {
        name,
        sha256,
        is_binary,
        ..
    } = wanted;
    let works = if is_binary {
        "\"$1\" --version </dev/null"
    } else {
        "true"
    };
    format!(
        "unset CDPATH; umask 077; say() {{ echo \"{MARK}$*\"; }}; d1=; \
         case \"${{XDG_CACHE_HOME:-}}\" in /*) d1=$XDG_CACHE_HOME/paperclip-bridge;; \
         *) case \"${{HOME:-}}\" in /*) d1=$HOME/.cache/paperclip-bridge;; esac;; esac; \
         d2=${{TMPDIR:-/tmp}}; case \"$d2\" in /*) ;; *) d2=/tmp;; esac; d2=$d2/paperclip-bridge-$(id -u); \
         usable() {{ case \"$1\" in \"\"|*[[:cntrl:]]*) return 1;; esac; mkdir -p \"$1\" 2>/dev/null; \
         if [ -L \"$1\" ]; then return 1; fi; \
         [ -d \"$1\" ] && [ -O \"$1\" ] && chmod 700 \"$1\" 2>/dev/null && [ -w \"$1\" ]; }}; \
         digest() {{ h=; if command -v sha256sum >/dev/null 2>&1; then h=$(sha256sum <\"$1\"); \
         elif command -v shasum >/dev/null 2>&1; then h=$(shasum -a 256 <\"$1\"); fi; h=${{h%% *}}; }}; \
         works() {{ {works}; }}; \
         fits() {{ if [ -L \"$1\" ]; then return 1; fi; [ -f \"$1\" ] && [ -O \"$1\" ] || return 1; \
         digest \"$1\" 2>/dev/null; [ \"$h\" = {sha256} ] && works \"$1\" >/dev/null 2>&1; }}; \
         f={name}; {PROCESS}"
    )
}

/// Functions about the process `a` that started at `b`, and any other. Linux only: elsewhere there is no record.
///
/// Fields of `/proc/PID/stat` are counted after the program's name, which may hold anything; a zombie is gone.
const PROCESS: &str = "stat() { s=; { IFS= read -r s </proc/$1/stat; } 2>/dev/null; set -- ${s##*\") \"}; \
                       z=$1; g=$3; t=${20}; [ \"$t\" ]; }; \
                       same() { stat \"$a\" && [ \"$t\" = \"$b\" ] && case $z in Z|X) false;; esac; }; \
                       alive() { kill -s 0 \"$1\" 2>/dev/null || return 1; stat \"$1\" || return 0; \
                       case $z in Z|X) return 1;; esac; }; ";

/// Removes from a folder what nobody uses any more: records of gateways that are gone, unless a queue's host goes by
/// them, and what was not touched for 30 days: queues without a gateway and, while no gateway runs here, programs and
/// what broken uploads left. At most 16 programs at a time. The token's file goes with the record.
const SWEEP: &str = "old() { [ -e \"$1\" ] && [ -z \"$(find \"$1\" -maxdepth 2 -mtime -30 2>/dev/null || echo x)\" ]; }; \
                     sweep() { live=0; for x in \"$1\"/run-*; do [ -f \"$x\" ] || continue; a=; b=; \
                     IFS=\" \" read -r a b <\"$x\"; q=$1/q-${x##*/run-}; \
                     if [ \"$a\" -gt 1 ] 2>/dev/null && [ \"$b\" -gt 0 ] 2>/dev/null; then \
                     if same; then live=1; elif [ -e \"$q\" ]; then if old \"$q\"; then rm -rf \"$q\"; rm -f \"$x\"; fi; \
                     else rm -f \"$x\" \"$1/token-${x##*/run-}\"; fi; elif old \"$x\"; then rm -f \"$x\"; fi; done; \
                     for x in \"$1\"/q-*; do if [ -e \"$1/run-${x##*/q-}\" ]; then continue; fi; \
                     if old \"$x\"; then rm -rf \"$x\"; fi; done; \
                     if [ $live -eq 1 ]; then return 0; fi; m=0; \
                     for x in \"$1\"/gateway-* \"$1\"/*/paperclip-bridge-server.mjs \"$1\"/.upload-* \"$1\"/.lock-* \
                     \"$1\"/token-*; do if [ \"$x\" = \"$1/$f\" ] || [ $m -ge 16 ]; then continue; fi; \
                     if old \"$x\"; then m=$((m+1)); rm -rf \"$x\"; \
                     case $x in */paperclip-bridge-server.mjs) rmdir \"${x%/*}\";; esac; fi; done; } 2>/dev/null; ";

/// Says what the target is and whether the program is there already.
///
/// - `room`: where it is not, say also where there is room for it, for a runner that uploads by a call of its own.
pub(super) fn probe(wanted: Wanted<'_>, room: bool) -> String {
    let needs = if wanted.is_binary {
        format!(
            "s=$(uname -sm 2>/dev/null); say \"system $s\"; [ \"$s\" = \"{}\" ] || exit 0; ",
            super::PLATFORM
        )
    } else {
        "n=$(command -v node 2>/dev/null); say \"node $n\"; [ \"$n\" ] || exit 0; ".to_owned()
    };
    let room = if room {
        "; for d in \"$d1\" \"$d2\"; do if usable \"$d\"; then say \"room $d\"; exit 0; fi; done"
    } else {
        ""
    };
    format!(
        "{}{SWEEP}{needs}for d in \"$d1\" \"$d2\"; do if [ -d \"$d\" ] && usable \"$d\"; then sweep \"$d\"; \
         if fits \"$d/$f\"; then touch \"$d/$f\" 2>/dev/null; say \"installed $d/$f\"; exit 0; fi; fi; done; \
         say missing{room}",
        folders(wanted)
    )
}

/// The file of an upload in one of the folders; [`SWEEP`] knows it by its name.
pub(super) fn staged(folder: &str, staging: &str) -> String {
    format!("{folder}/.upload-{staging}")
}

/// Takes the program from stdin or from where it was uploaded to, checks it, and puts it in place.
///
/// The lock only spares a second upload: each upload has a name of its own and gets its place by one rename, so whoever
/// waited in vain goes on without it.
///
/// - `staging`: a name that nobody else uses, hex.
/// - `skip_home`: go straight to the second folder, after the first ran full.
/// - `uploaded`: the file that holds it already; nothing is read from stdin then.
pub(super) fn upload(wanted: Wanted<'_>, staging: &str, skip_home: bool, uploaded: Option<&str>) -> String {
    let Wanted { sha256, size, .. } = wanted;
    let skip = if skip_home { "d1=; " } else { "" };
    let folder = if wanted.is_binary {
        ""
    } else {
        "mkdir -p \"$d/${f%/*}\"; "
    };
    let uploaded = uploaded.map(quote).unwrap_or_default();
    format!(
        "{}{skip}p={uploaded}; l=; clean() {{ if [ \"$p\" ]; then rm -f \"$p\"; fi; if [ \"$l\" ]; then rm -rf \"$l\"; fi; }}; \
         trap clean EXIT; trap \"exit 1\" HUP INT TERM; \
         lock() {{ k=$1/.lock-{sha256}; i=0; until mkdir \"$k\" 2>/dev/null; do \
         if fits \"$1/$f\"; then return 0; fi; \
         o=; {{ IFS= read -r o <\"$k/pid\"; }} 2>/dev/null; \
         if [ \"$o\" -gt 1 ] 2>/dev/null; then alive \"$o\" || {{ rm -rf \"$k\"; i=$((i+20)); }}; fi; \
         if sleep 0.05 2>/dev/null; then i=$((i+1)); else sleep 1; i=$((i+20)); fi; \
         [ $i -ge 600 ] && return 0; done; l=$k; echo $$ >\"$k/pid\"; }}; \
         for d in \"$d1\" \"$d2\"; do usable \"$d\" || continue; \
         lock \"$d\"; if fits \"$d/$f\"; then say \"installed $d/$f\"; exit 0; fi; \
         q=$d/.upload-{staging}; \
         if [ \"$p\" = \"$q\" ]; then :; elif [ \"$p\" ]; then cat \"$p\" >\"$q\"; rm -f \"$p\"; p=$q; else p=$q; cat >\"$q\"; fi; \
         [ \"$(wc -c <\"$q\")\" -eq {size} ] || {{ say \"short $d\"; exit 0; }}; \
         digest \"$q\"; case $h in {sha256}) ;; \"\") say unverified;; *) say \"mismatch $d\"; exit 0;; esac; \
         chmod 700 \"$q\"; e=$(works \"$q\" 2>&1); \
         if [ $? -eq 0 ]; then {folder}mv -f \"$q\" \"$d/$f\" && p= && say \"installed $d/$f\" && exit 0; fi; \
         say \"refused $d: $e\"; if [ \"$l\" ]; then rm -rf \"$l\"; l=; fi; done; say nowhere",
        folders(wanted)
    )
}

/// Ends the process that the record `r` names, if it is still that very one: `TERM`, and `KILL` after `grace_steps`
/// tenths of a second. Leaves 0 in `left` where nothing of it remains, and in `i` how long that took, empty where
/// nothing was there.
fn ending(grace_steps: u32) -> String {
    let limit = grace_steps.saturating_add(10);
    format!(
        "{PROCESS}send() {{ if [ \"$g\" = \"$a\" ]; then kill -s $1 -- -$a; else kill -s $1 $a; fi; }} 2>/dev/null; \
         left=0; i=; a=; b=; if [ -f \"$r\" ]; then IFS=\" \" read -r a b <\"$r\"; fi; \
         if [ \"$a\" -gt 1 ] 2>/dev/null && [ \"$b\" -gt 0 ] 2>/dev/null && same; then i=0; send TERM; \
         while same && [ $i -lt {limit} ]; do if [ $i -eq {grace_steps} ]; then send KILL; fi; \
         sleep 0.1 2>/dev/null || sleep 1; i=$((i+1)); done; if same; then left=1; fi; fi; "
    )
}

/// Reads the block of variables from stdin. Builtins only, so that no secret stands in an argv; and `read` takes
/// nothing beyond its line from a pipe or a socket, so that the rest stays the gateway's.
const READ_BLOCK: &str = "IFS= read -r n || exit 125; while [ \"$n\" -gt 0 ]; do \
                          IFS= read -r v || exit 125; export \"$v\" || exit 125; n=$((n-1)); done; ";

/// Ends the predecessor, records itself, takes its variables and becomes the gateway.
///
/// A gateway of ours is told where its record is, and removes it when it ends by itself.
///
/// - `record`: the record's path.
/// - `command`: the gateway's command line, quoted.
pub(super) fn start(record: &str, command: &str, grace_steps: u32) -> String {
    format!(
        "unset CDPATH; umask 077; r={}; {}{READ_BLOCK}unset n v; {RECORD}=$r; export {RECORD}; \
         if stat $$; then echo \"$$ $t\" >\"$r\"; fi 2>/dev/null; exec {command}",
        quote(record),
        ending(grace_steps)
    )
}

/// As [`start`], but the gateway is left behind on its own: no terminal, no stdin, its output appended to `log`.
pub(super) fn start_detached(record: &str, command: &str, log: &str, grace_steps: u32) -> String {
    format!(
        "unset CDPATH; umask 077; r={}; {}{READ_BLOCK}unset n v; {RECORD}=$r; export {RECORD}; w=$(command -v setsid); \
         if [ -z \"$w\" ]; then w=nohup; fi; \
         {{ exec \"$w\" {command}; }} </dev/null >>{} 2>&1 & c=$!; \
         if stat $c; then echo \"$c $t\" >\"$r\"; fi 2>/dev/null; echo \"{MARK}started $c ${{t:--}}\"",
        quote(record),
        ending(grace_steps),
        quote(log)
    )
}

/// Puts a line into the file by which a gateway takes another token, in the place of the one that is expected there, and
/// says what stands there where that is another. Both lines come over stdin. Nothing is done where a later owner of the
/// queue has been there: a number of at most 18 digits.
///
/// - `fence`: the queue's directory, and the number of who asks.
pub(super) fn change_token(file: &str, fence: Option<(&str, u64)>) -> String {
    let behind = fence.map_or_else(String::new, |(directory, fence)| {
        format!(
            "q={}; b=; if [ -L \"$q/fence\" ]; then :; elif [ -f \"$q/fence\" ]; then read -r b x <\"$q/fence\"; fi; \
             case $b in ???????????????????*) b=;; esac; \
             if [ \"$b\" -gt {fence} ] 2>/dev/null; then echo \"{MARK}behind $b\"; exit 0; fi; ",
            quote(directory)
        )
    });
    format!(
        "unset CDPATH; umask 077; t={}; IFS= read -r o && IFS= read -r n || exit 125; {behind}\
         l=; if [ -L \"$t\" ]; then :; elif [ -f \"$t\" ]; then IFS= read -r l <\"$t\"; fi; \
         if [ \"$l\" = \"\" ]; then echo \"{MARK}none\"; \
         elif [ \"$l\" = \"$n\" ]; then echo \"{MARK}taken\"; \
         elif [ \"$l\" = \"$o\" ]; then p=$t.$$; rm -rf \"$p\"; \
         if {{ echo \"$n\" >\"$p\" && mv -f \"$p\" \"$t\"; }} 2>/dev/null; then echo \"{MARK}taken\"; \
         else rm -f \"$p\"; echo \"{MARK}failed\"; fi; \
         else echo \"{MARK}other $l\"; fi",
        quote(file)
    )
}

/// Ends the gateway of a record, if it is still there, and removes the record.
pub(super) fn end(record: &str, grace_steps: u32) -> String {
    format!(
        "unset CDPATH; r={}; {}if [ $left -eq 0 ]; then rm -f \"$r\" \"${{r%/run-*}}/token-${{r##*/run-}}\"; echo \"{MARK}ended ${{i:--}}\"; \
         else echo \"{MARK}left $a\"; fi",
        quote(record),
        ending(grace_steps)
    )
}
