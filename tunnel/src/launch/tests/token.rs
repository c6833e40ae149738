//! Another token for a gateway that runs: the command by itself in every shell, and what is made of its words.

use std::collections::VecDeque;
use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use super::*;
use crate::launch::scripts;

const FIRST: [u8; 32] = [1; 32];
const SECOND: [u8; 32] = [2; 32];
const THIRD: [u8; 32] = [3; 32];

fn line(start: &str, digest: &[u8; 32]) -> String {
    format!("{start} {}", hex(digest))
}

/// Runs the command in this shell, and gives back what it said.
fn said(shell: &[&str], file: &Path, fence: Option<(&Path, u64)>, expected: &str, next: &str) -> String {
    let fence = fence.map(|(queue, fence)| (queue.to_str().unwrap(), fence));
    let script = scripts::change_token(file.to_str().unwrap(), fence);
    let mut child = Command::new(shell[0])
        .args(&shell[1..])
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin
        .write_all(format!("{expected}\n{next}\n").as_bytes())
        .unwrap();
    drop(stdin);
    let ended = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&ended.stderr);
    assert!(error.is_empty(), "{shell:?}: {error}");
    String::from_utf8(ended.stdout).unwrap().trim_end().to_owned()
}

/// Those that are here.
fn shells() -> Vec<Vec<&'static str>> {
    let all = [vec!["sh"], vec!["bash"], vec!["dash"], vec!["busybox", "sh"]];
    let here = |shell: &Vec<&str>| {
        let asked = Command::new(shell[0])
            .args(&shell[1..])
            .args(["-c", "exit 0"])
            .status();
        asked.is_ok_and(|status| status.success())
    };
    all.into_iter().filter(here).collect()
}

#[test]
fn the_line_is_replaced_once_and_only_where_it_is_the_expected_one() {
    for shell in shells() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("to k'en");
        let (first, second, third) = (line("ab", &FIRST), line("ab", &SECOND), line("ab", &THIRD));
        let say = |expected: &str, next: &str| said(&shell, &file, None, expected, next);
        let stands = || fs::read_to_string(&file).unwrap();

        assert_eq!(say(&first, &second), "pcb-launch none", "{shell:?}");
        assert!(!file.exists());
        fs::write(&file, format!("{first}\n")).unwrap();
        assert_eq!(say(&first, &second), "pcb-launch taken", "{shell:?}");
        assert_eq!(stands(), format!("{second}\n"));
        assert_eq!(mode(&file), 0o600);
        // It comes once more, and after another one, and after the gateway of another start.
        assert_eq!(say(&first, &second), "pcb-launch taken");
        assert_eq!(say(&second, &third), "pcb-launch taken");
        assert_eq!(say(&first, &second), format!("pcb-launch other {third}"));
        assert_eq!(stands(), format!("{third}\n"));
        let other = line("cd", &FIRST);
        fs::write(&file, format!("{other}\n")).unwrap();
        assert_eq!(say(&first, &second), format!("pcb-launch other {other}"));
        assert_eq!(stands(), format!("{other}\n"));
        assert_eq!(names(folder.path()), ["to k'en"], "{shell:?}");
    }
}

#[test]
fn a_link_is_no_file_and_what_cannot_be_written_is_said() {
    for shell in shells() {
        let folder = tempfile::tempdir().unwrap();
        let (file, elsewhere) = (folder.path().join("token"), folder.path().join("elsewhere"));
        let (first, second) = (line("ab", &FIRST), line("ab", &SECOND));
        fs::write(&elsewhere, format!("{first}\n")).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &file).unwrap();

        let say = || said(&shell, &file, None, &first, &second);
        assert_eq!(say(), "pcb-launch none", "{shell:?}");

        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        assert_eq!(say(), "pcb-launch none", "{shell:?}");
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), format!("{first}\n"));
    }
}

#[test]
fn nothing_is_done_where_a_later_owner_was() {
    for shell in shells() {
        let queue = tempfile::tempdir().unwrap();
        let file = queue.path().join("token");
        let (first, second) = (line("ab", &FIRST), line("ab", &SECOND));
        fs::write(&file, format!("{first}\n")).unwrap();
        let say = |fence: u64| said(&shell, &file, Some((queue.path(), fence)), &first, &second);

        for last in ["8", "900000000000000000"] {
            fs::write(queue.path().join("fence"), format!("{last}\n")).unwrap();
            assert_eq!(say(7), format!("pcb-launch behind {last}"), "{shell:?}");
            assert_eq!(fs::read_to_string(&file).unwrap(), format!("{first}\n"));
        }
        // What is no number, or none of ours, tells of no owner; nor does a link, or nothing.
        for last in ["7\n", "6\n", "x\n", "", "9999999999999999999999\n"] {
            fs::write(&file, format!("{first}\n")).unwrap();
            fs::write(queue.path().join("fence"), last).unwrap();
            assert_eq!(say(7), "pcb-launch taken", "{shell:?} {last:?}");
        }
        fs::write(&file, format!("{first}\n")).unwrap();
        fs::remove_file(queue.path().join("fence")).unwrap();
        assert_eq!(say(7), "pcb-launch taken", "{shell:?}");
    }
}

#[test]
fn the_command_stands_in_single_quotes_of_any_login_shell() {
    let script = scripts::change_token("/t", Some(("/q", 7)));

    // Paths are quoted for every shell.
    let script = script.replace("'/t'", "").replace("'/q'", "");
    assert!(!script.contains(['\'', '\\', '!', '\n']), "{script}");
}

/// The machine with commands that end otherwise than they say: each is told before it runs whether it runs and answers.
#[derive(Debug)]
struct Flaky {
    machine: Arc<Machine>,
    ends: Mutex<VecDeque<End>>,
    /// What ran too late is run by the test.
    late: Mutex<Vec<Execution>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It runs, and its answer is lost.
    Unheard,
    /// Its answer is lost before it runs.
    Late,
    /// It never runs, and that is known.
    Unreachable,
}

impl CommandManagedRuntimeRunner for Flaky {
    fn execute(&self, execution: Execution) -> BoxFuture<'_, Result<ExecutionResult, RunnerError>> {
        Box::pin(async move {
            let lost = || RunnerError::Lost {
                target: "machine".to_owned(),
            };
            let end = self.ends.lock().unwrap().pop_front();
            match end {
                None => self.machine.execute(execution).await,
                Some(End::Unheard) => {
                    self.machine.execute(execution).await?;
                    Err(lost())
                }
                Some(End::Late) => {
                    self.late.lock().unwrap().push(execution);
                    Err(lost())
                }
                Some(End::Unreachable) => Err(RunnerError::Unreachable {
                    target: "machine".to_owned(),
                    reason: "it is away".to_owned(),
                }),
            }
        })
    }

    fn open_duplex(&self, request: DuplexRequest) -> BoxFuture<'_, Result<Duplex, RunnerError>> {
        self.machine.open_duplex(request)
    }

    fn capabilities(&self) -> Capabilities {
        self.machine.capabilities()
    }

    fn target(&self) -> &str {
        "machine"
    }
}

/// A token that a gateway holds which is played by its file.
struct World {
    runner: Arc<Flaky>,
    file: PathBuf,
    token: SharedToken,
}

impl World {
    async fn new(start: Option<&str>) -> Self {
        let machine = Machine::new();
        let file = machine.home.path().join("token");
        fs::write(&file, format!("{}\n", line("ab", &FIRST))).unwrap();
        let runner = Arc::new(Flaky {
            machine,
            ends: Mutex::default(),
            late: Mutex::default(),
        });
        let token = SharedToken::from(GatewayToken::from_digest(FIRST));
        token.held().await.gateway = Some(Following {
            launcher: Launcher::new(
                runner.clone(),
                Shell::Sh,
                GatewayProgram::binary(GATEWAY.as_bytes()),
            ),
            file: file.to_str().unwrap().to_owned(),
            start: start.map(str::to_owned),
            fence: None,
        });
        Self { runner, file, token }
    }

    fn ends(&self, ends: &[End]) {
        self.runner.ends.lock().unwrap().extend(ends);
    }

    async fn ran_late(&self) {
        let late = std::mem::take(&mut *self.runner.late.lock().unwrap());
        assert!(!late.is_empty());
        for execution in late {
            self.runner.machine.execute(execution).await.unwrap();
        }
    }

    fn stands(&self, digest: &[u8; 32]) {
        let text = fs::read_to_string(&self.file).unwrap();
        assert_eq!(text, format!("{}\n", line("ab", digest)));
    }

    async fn holds(&self, digest: &[u8; 32]) {
        assert_eq!(self.token.held().await.token.sha256(), digest);
    }
}

#[tokio::test]
async fn a_token_is_changed_as_often_as_one_likes_and_stands_in_no_argument() {
    for start in [Some("ab"), None] {
        let world = World::new(start).await;

        for digest in [SECOND, THIRD, FIRST] {
            world.token.change(digest).await.unwrap();
            world.stands(&digest);
            world.holds(&digest).await;
        }

        let scripts = world.runner.machine.scripts.lock().unwrap();
        assert!(scripts.iter().all(|script| !script.contains("0202")));
    }
}

#[tokio::test]
async fn a_command_whose_answer_is_lost_is_asked_once_more() {
    for end in [End::Unheard, End::Late] {
        let world = World::new(Some("ab")).await;
        world.ends(&[end]);

        world.token.change(SECOND).await.unwrap();

        world.stands(&SECOND);
        world.holds(&SECOND).await;
    }
}

#[tokio::test]
async fn where_it_stays_unknown_the_next_change_puts_it_right_and_what_comes_late_undoes_nothing() {
    for ends in [[End::Unheard, End::Unheard], [End::Late, End::Late]] {
        let world = World::new(Some("ab")).await;
        world.ends(&ends);

        let fault = world.token.change(SECOND).await.unwrap_err();
        assert!(matches!(fault, ChangeFault::Uncertain(_)), "{fault}");
        world.holds(&FIRST).await;
        world.token.change(THIRD).await.unwrap();
        if ends[0] == End::Late {
            world.ran_late().await;
        }

        world.stands(&THIRD);
        world.holds(&THIRD).await;
    }
}

#[tokio::test]
async fn a_target_that_was_not_reached_leaves_the_token_before() {
    let world = World::new(Some("ab")).await;
    world.ends(&[End::Unreachable]);

    let fault = world.token.change(SECOND).await.unwrap_err();

    assert!(matches!(fault, ChangeFault::Unchanged(_)), "{fault}");
    assert!(fault.to_string().contains("it is away"), "{fault}");
    world.stands(&FIRST);
    world.holds(&FIRST).await;
}

#[tokio::test]
async fn a_gateway_of_another_start_or_without_a_file_takes_nothing() {
    let world = World::new(Some("cd")).await;
    let fault = world.token.change(SECOND).await.unwrap_err();
    assert!(matches!(fault, ChangeFault::NotFollowed), "{fault}");
    world.stands(&FIRST);

    for text in ["", "x", &"x ".repeat(300)] {
        let world = World::new(None).await;
        fs::write(&world.file, text).unwrap();
        let fault = world.token.change(SECOND).await.unwrap_err();
        assert!(matches!(fault, ChangeFault::NotFollowed), "{text:?}: {fault}");
        world.holds(&FIRST).await;
    }
    let nothing = SharedToken::from(GatewayToken::from_digest(FIRST));
    let fault = nothing.change(SECOND).await.unwrap_err();
    assert!(matches!(fault, ChangeFault::NotFollowed), "{fault}");
}
