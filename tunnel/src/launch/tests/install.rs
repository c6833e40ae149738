//! Where the program ends up.

use std::time::{Duration, Instant};

use runners::SecretText;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

#[tokio::test]
async fn a_program_is_uploaded_once_and_found_afterwards() {
    for shell in [Shell::Sh, Shell::Bash] {
        let machine = Machine::new();
        let launcher = launcher(&machine, shell);

        let first = launcher.install().await.unwrap();
        let after_first = machine.executions();
        let second = launcher.install().await.unwrap();

        assert_eq!(first, second);
        assert_eq!((after_first, machine.executions()), (2, 3));
        assert_eq!(std::fs::read(first.path()).unwrap(), GATEWAY.as_bytes());
        assert_eq!(first.folder(), machine.folder().to_str().unwrap());
        assert_eq!(mode(Path::new(first.path())), 0o700);
        assert_eq!(mode(&machine.folder()), 0o700);
        let sha = launcher.program.sha256();
        assert_eq!(names(&machine.folder()), [format!("gateway-{sha}")]);
    }
}

#[tokio::test]
async fn the_program_never_stands_in_a_command_line() {
    let machine = Machine::new();
    let launcher = launcher(&machine, Shell::Sh);

    launcher.install().await.unwrap();

    let scripts = machine.scripts.lock().unwrap();
    assert!(scripts.iter().all(|script| !script.contains("exec cat")));
    assert!(
        scripts.iter().all(|script| script.len() < 4000),
        "{:?}",
        scripts.iter().map(String::len).collect::<Vec<_>>()
    );
}

#[test]
fn scripts_hold_nothing_that_a_login_shell_of_another_family_reads_differently() {
    let wanted = scripts::Wanted {
        name: "gateway-00",
        sha256: "00",
        size: 7,
        is_binary: true,
    };
    let script = scripts::Wanted {
        is_binary: false,
        ..wanted
    };
    for text in [
        scripts::probe(wanted, false),
        scripts::probe(script, true),
        scripts::upload(wanted, "ab", true, None),
        scripts::upload(script, "ab", false, None),
    ] {
        assert!(
            text.bytes()
                .all(|byte| (byte == b' ' || byte.is_ascii_graphic()) && !b"'\\!".contains(&byte)),
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_damaged_program_is_replaced() {
    let machine = Machine::new();
    let launcher = launcher(&machine, Shell::Sh);
    let installed = launcher.install().await.unwrap();
    std::fs::write(installed.path(), "#!/bin/sh\nexit 0\n").unwrap();

    let again = launcher.install().await.unwrap();

    assert_eq!(again, installed);
    assert_eq!(std::fs::read(installed.path()).unwrap(), GATEWAY.as_bytes());
}

#[tokio::test]
async fn a_home_that_cannot_be_written_leads_to_the_temporary_folder() {
    let machine = Machine::new();
    // A file where the folder should be: that stops root, too.
    std::fs::write(machine.home.path().join("home/.cache"), "").unwrap();
    let launcher = launcher(&machine, Shell::Sh);

    let installed = launcher.install().await.unwrap();

    let folder = machine.home.path().join(format!(
        "tmp/paperclip-bridge-{}",
        rustix::process::getuid().as_raw()
    ));
    assert_eq!(installed.folder(), folder.to_str().unwrap());
    assert_eq!(mode(&folder), 0o700);
}

#[tokio::test]
async fn a_folder_whose_programs_do_not_run_is_passed_over() {
    let machine = Machine::new();
    let home = machine.folder();
    let gateway = format!(
        "#!/bin/sh\ncase \"$0\" in {}/*) echo no programs here >&2; exit 126;; esac\n",
        home.display()
    );
    let program = GatewayProgram::binary(gateway.clone().into_bytes());
    let launcher = Launcher::new(machine.clone(), Shell::Sh, program);

    let installed = launcher.install().await.unwrap();

    assert!(
        installed
            .folder()
            .starts_with(machine.home.path().join("tmp").to_str().unwrap()),
        "{installed:?}"
    );
    assert_eq!(std::fs::read(installed.path()).unwrap(), gateway.as_bytes());
    assert_eq!(names(&home), Vec::<String>::new());
}

#[tokio::test]
async fn a_program_that_runs_nowhere_says_why_and_leaves_nothing() {
    let machine = Machine::new();
    let program = GatewayProgram::binary(&b"#!/bin/sh\necho 'no such luck' >&2; exit 3\n"[..]);
    let launcher = Launcher::new(machine.clone(), Shell::Sh, program);

    let fault = launcher.install().await.unwrap_err();

    assert_eq!(fault.reason(), "entrypoint_sync_failed");
    assert!(fault.to_string().contains("no such luck"), "{fault}");
    assert_eq!(names(&machine.folder()), Vec::<String>::new());
}

#[tokio::test]
async fn a_symlink_in_the_place_of_the_folder_is_not_followed() {
    let machine = Machine::new();
    let elsewhere = machine.home.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    std::fs::create_dir(machine.home.path().join("home/.cache")).unwrap();
    std::os::unix::fs::symlink(&elsewhere, machine.folder()).unwrap();
    let launcher = launcher(&machine, Shell::Sh);

    let installed = launcher.install().await.unwrap();

    assert!(!installed.folder().starts_with(elsewhere.to_str().unwrap()));
    assert!(installed.folder().contains("/tmp/paperclip-bridge-"));
    assert_eq!(names(&elsewhere), Vec::<String>::new());
}

#[tokio::test]
async fn another_platform_is_named_and_nothing_is_uploaded() {
    let machine = Machine::new();
    machine.stand_in("uname", "#!/bin/sh\necho Linux aarch64\n");
    let launcher = launcher(&machine, Shell::Sh);

    let fault = launcher.install().await.unwrap_err();

    assert_eq!(fault.reason(), "no_gateway_for_platform");
    let text = fault.to_string();
    assert!(
        text.contains("Linux aarch64") && text.contains("--gateway node:PATH"),
        "{text}"
    );
    assert_eq!(machine.executions(), 1);
}

#[tokio::test]
async fn a_script_keeps_its_name_and_runs_where_node_is() {
    let machine = Machine::new();
    machine.stand_in("node", "#!/bin/sh\necho \"node runs $1\"; exec cat\n");
    let program = GatewayProgram::script(&b"// script\n"[..]);
    let launcher = Launcher::new(machine.clone(), Shell::Sh, program);

    let installed = launcher.install().await.unwrap();

    assert!(
        installed.path().ends_with("/paperclip-bridge-server.mjs"),
        "{installed:?}"
    );
    assert_eq!(installed.node(), machine.bin.join("node").to_str());
    let token = GatewayToken::from_text(SecretText::new("t"));
    let environment = GatewayEnvironment::http2(launcher.kind(), &token, 20_000, "00", 1).unwrap();
    let name = SessionName::new("s").unwrap();
    let mut duplex = launcher.open(&installed, &name, &environment).await.unwrap();
    duplex.stream.shutdown().await.unwrap();
    let mut said = String::new();
    duplex.stream.read_to_string(&mut said).await.unwrap();
    assert_eq!(said, format!("node runs {}\n", installed.path()));
}

#[tokio::test]
async fn a_target_without_node_is_told_apart() {
    let machine = Machine::new();
    let program = GatewayProgram::script(&b"// script\n"[..]);
    let runner = Arc::new(Bare(machine.clone()));
    let launcher = Launcher::new(runner, Shell::Sh, program);

    let fault = launcher.install().await.unwrap_err();

    assert_eq!(fault.reason(), "node_missing");
}

#[tokio::test]
async fn the_lock_of_a_dead_writer_does_not_hold_up_the_next() {
    let machine = Machine::new();
    let launcher = launcher(&machine, Shell::Sh);
    let mut child = std::process::Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    let lock = machine
        .folder()
        .join(format!(".lock-{}", launcher.program.sha256()));
    std::fs::create_dir_all(&lock).unwrap();
    std::fs::write(lock.join("pid"), format!("{}\n", child.id())).unwrap();
    let started = Instant::now();

    launcher.install().await.unwrap();

    assert!(
        started.elapsed() < Duration::from_secs(10),
        "{:?}",
        started.elapsed()
    );
    assert!(!lock.exists());
}

#[tokio::test]
async fn many_writers_at_once_all_find_the_program() {
    let machine = Machine::new();
    let launcher = launcher(&machine, Shell::Sh);
    let mut installs = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let launcher = launcher.clone();
        installs.spawn(async move { launcher.install().await.unwrap() });
    }

    let all = installs.join_all().await;

    assert!(all.iter().all(|installed| installed == &all[0]));
    let sha = launcher.program.sha256();
    assert_eq!(names(&machine.folder()), [format!("gateway-{sha}")]);
}

fn uploading(machine: &Arc<Machine>, upload: Upload) -> (Arc<Uploading>, Launcher) {
    let runner = Uploading::on(machine, upload);
    let program = GatewayProgram::binary(GATEWAY.as_bytes());
    (runner.clone(), Launcher::new(runner, Shell::Sh, program))
}

#[tokio::test]
async fn a_runner_that_takes_files_is_given_the_program_as_one() {
    let machine = Machine::new();
    let (runner, launcher) = uploading(&machine, Upload::Whole);

    let installed = launcher.install().await.unwrap();

    assert_eq!(*runner.stdin_bytes.lock().unwrap(), 0);
    let uploads = runner.uploads.lock().unwrap().clone();
    assert_eq!(uploads.len(), 1);
    assert!(
        uploads[0].starts_with(&format!("{}/.upload-", machine.folder().display())),
        "{uploads:?}"
    );
    assert_eq!(std::fs::read(installed.path()).unwrap(), GATEWAY.as_bytes());
    assert_eq!(mode(Path::new(installed.path())), 0o700);
    let sha = launcher.program.sha256();
    assert_eq!(names(&machine.folder()), [format!("gateway-{sha}")]);
}

#[tokio::test]
async fn what_an_upload_spoilt_is_not_put_in_place() {
    let machine = Machine::new();
    let (_, launcher) = uploading(&machine, Upload::Spoilt);

    let fault = launcher.install().await.unwrap_err();

    assert!(fault.to_string().contains("another SHA-256"), "{fault}");
    assert_eq!(names(&machine.folder()), [""; 0]);
}

#[tokio::test]
async fn what_an_upload_refused_or_cut_short_goes_over_stdin() {
    for upload in [Upload::Refused, Upload::Cut] {
        let machine = Machine::new();
        let (runner, launcher) = uploading(&machine, upload);

        let installed = launcher.install().await.unwrap();

        assert_eq!(*runner.stdin_bytes.lock().unwrap(), GATEWAY.len(), "{upload:?}");
        assert_eq!(installed.folder(), machine.folder().to_str().unwrap());
        let sha = launcher.program.sha256();
        assert_eq!(names(&machine.folder()), [format!("gateway-{sha}")]);
    }
}

#[tokio::test]
async fn a_file_uploaded_to_the_temporary_folder_is_put_in_place_there() {
    let machine = Machine::new();
    // The folder in the home is a file, so that it cannot be made.
    std::fs::create_dir_all(machine.folder().parent().unwrap()).unwrap();
    std::fs::write(machine.folder(), "").unwrap();
    let (runner, launcher) = uploading(&machine, Upload::Whole);

    let installed = launcher.install().await.unwrap();

    assert_eq!(*runner.stdin_bytes.lock().unwrap(), 0);
    let temporary = machine.home.path().join("tmp");
    assert!(
        Path::new(installed.path()).starts_with(temporary),
        "{}",
        installed.path()
    );
}
