//! Debian's Linux with its own virtio drivers as the guest, on drives that hold ext4 and on a tap. What the guest does is in
//! guest-virtio.sh. This kernel takes no devices from its command line (CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES is not
//! set): it finds them by ACPI alone.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use crate::guest::{Guest, LIMIT};

/// The image of the drive, in the file system in memory that the emulated host has.
pub const IMAGE: &str = "/tmp/drive";
/// Of the address that guest-virtio.sh gives the guest's end.
const ADDRESS: &str = "10.77.0.1";
/// As many drives as leave room for one interface.
const DRIVES: usize = 17;

scenarios! {
    files_by_the_synchronous_engine => files("engine=sync", "");
    files_by_io_uring => files("engine=async", "");
    files_on_a_drive_with_a_cache => files("engine=sync,cache=writeback", "");
    files_by_io_uring_on_a_drive_with_a_cache => files("engine=async,cache=writeback", "--cpus 2");
    files_with_interrupts_by_the_kernel => files("engine=sync,cache=writeback", "--irqchip kernel");
    nothing_is_written_to_a_read_only_drive => read_only("engine=sync");
    nothing_is_written_to_a_read_only_drive_by_io_uring => read_only("engine=async");
    killed_while_it_writes => killed("engine=sync,cache=writeback");
    killed_while_io_uring_writes => killed("engine=async,cache=writeback");
    packets_each_way => packets("", 100);
    // Two CPUs wait for each other by spinning, and the emulated host has one that gives neither up for it.
    packets_each_way_with_two_cpus => packets("--cpus 2", 20);
    announced_in_both_ways => announced("", "yes");
    announced_by_acpi_alone => announced("--no-device-arguments", "no");
}

/// What the guest writes is there after its end, in a file system without fault.
fn files(engine: &str, options: &str) {
    make_image(&[]);
    let mut guest = start(&format!("--disk {IMAGE},{engine} {options}"));
    let sum = task(&mut guest, "fill");
    guest.type_line("poweroff -f");
    guest.ends_with(0);
    let (code, said) = check(&["-f", "-n"]);
    assert_eq!(code, 0, "e2fsck: {said}");
    assert_eq!(sum_of(&content("large")), sum);
    assert_eq!(content("many/299"), b"file 299\n");
    assert_eq!(content("many/1"), b"", "it was deleted");
}

/// The guest reads what the host wrote, and its writes fail and change nothing.
fn read_only(engine: &str) {
    let large = random(8);
    make_image(&large);
    let before = sum_of(&fs::read(IMAGE).unwrap());
    let mut guest = start(&format!("--disk {IMAGE},ro,{engine}"));
    let sum = task(&mut guest, "look");
    guest.type_line("poweroff -f");
    guest.ends_with(0);
    assert_eq!(sum, sum_of(&large));
    assert_eq!(sum_of(&fs::read(IMAGE).unwrap()), before);
}

/// SIGKILL in the middle of writing costs no more than a replay of the journal, and nothing that the guest had synced.
fn killed(engine: &str) {
    make_image(&[]);
    let mut guest = start(&format!("--disk {IMAGE},{engine}"));
    guest.type_line("virtio churn");
    let mut kept = Vec::new();
    while kept.len() < 12 {
        guest.expect("kept ");
        kept.push(guest.expect(" end"));
    }
    // By SIGKILL.
    drop(guest);

    let (_, said) = check(&["-f", "-n"]);
    assert!(
        said.contains("skipping journal recovery"),
        "nothing was under way: {said}"
    );
    let (code, said) = check(&["-p", "-E", "journal_only"]);
    assert!(code <= 1, "the journal cannot be replayed: {code}: {said}");
    let (code, said) = check(&["-f", "-n"]);
    assert_eq!(code, 0, "more than the journal was left: {said}");
    // churn removes older ones.
    for line in &kept[8..] {
        let (name, sum) = line.split_once(' ').unwrap();
        assert_eq!(sum_of(&content(name)), sum, "file {name}");
    }
}

/// Echoes are answered, and as many MiB that go through the interface arrive as they were sent, each way.
fn packets(options: &str, traffic: usize) {
    make_tap();
    let mut guest = start(&format!("{options} --net tap:tap0,mac=02:00:00:00:77:02"));
    raise_tap();
    assert_eq!(task(&mut guest, "interface"), "02:00:00:00:77:02");

    let received = connection(5001, |mut stream| {
        let mut bytes = Vec::new();
        io::copy(&mut stream, &mut bytes).map(|_| bytes)
    });
    let sum = task(&mut guest, &format!("send {traffic}"));
    let bytes = received.recv_timeout(LIMIT).unwrap().unwrap();
    assert_eq!(bytes.len(), traffic << 20);
    assert_eq!(sum_of(&bytes), sum);

    let sent = random(traffic);
    let sum = sum_of(&sent);
    let written = connection(5002, move |mut stream| stream.write_all(&sent));
    assert_eq!(task(&mut guest, "receive"), sum);
    written.recv_timeout(LIMIT).unwrap().unwrap();

    guest.type_line("poweroff -f");
    guest.ends_with(0);
    remove_tap();
}

/// As many devices as there can be are all found, in their order, and each has an interrupt that arrives.
fn announced(options: &str, arguments: &str) {
    let names: Vec<String> = (0..DRIVES).map(|number| format!("drive-{number:02}")).collect();
    let mut drives = String::new();
    for name in &names {
        let mut sector = format!("this is {name}\n").into_bytes();
        sector.resize(512, 0);
        fs::write(format!("/tmp/{name}"), sector).unwrap();
        drives.push_str(&format!("--disk /tmp/{name},id={name} "));
    }
    make_tap();
    let mut guest = start(&format!("{drives} --net tap:tap0 {options}"));
    let found = task(&mut guest, "devices");
    guest.type_line("poweroff -f");
    guest.ends_with(0);
    remove_tap();
    for name in &names {
        fs::remove_file(format!("/tmp/{name}")).unwrap();
    }
    assert_eq!(
        found,
        format!(
            "arguments={arguments} acpi=18 virtio=18 drives= {}",
            names.join(" ")
        )
    );
}

/// A tap that nobody has used: a scenario that failed leaves its own.
pub fn make_tap() {
    remove_tap();
    run("tunctl", &["-t", "tap0"]);
}

/// Gives the host its end of the tap.
pub fn raise_tap() {
    run("ip", &["address", "add", &format!("{ADDRESS}/24"), "dev", "tap0"]);
    run("ip", &["link", "set", "tap0", "up"]);
}

pub fn remove_tap() {
    run("tunctl", &["-d", "tap0"]);
}

/// Linux at its prompt, on a machine with `options`.
pub fn start(options: &str) -> Guest {
    let mut guest = Guest::start(&format!(
        "/images/vmlinuz --initrd /images/initrd --memory 512M {options} -- console=ttyS0 quiet panic=-1"
    ));
    guest.expect("prompt> ");
    guest
}

/// Has the guest do `task` of guest-virtio.sh, which must succeed; gives what it found.
pub fn task(guest: &mut Guest, task: &str) -> String {
    guest.type_line(&format!("virtio {task}"));
    guest.expect("virtio: ");
    let said = guest.expect(" end");
    match said.strip_prefix("ok ") {
        Some(found) => found.to_owned(),
        None => guest.fail(&format!("it could not {task}")),
    }
}

/// Makes an ext4 image that holds `large`, if that is not empty.
pub fn make_image(large: &[u8]) {
    let folder = Path::new("/tmp/content");
    fs::create_dir_all(folder).unwrap();
    let _ = fs::remove_file(IMAGE);
    if !large.is_empty() {
        fs::write(folder.join("large"), large).unwrap();
    }
    run(
        "mke2fs",
        &["-q", "-t", "ext4", "-d", "/tmp/content", IMAGE, "64M"],
    );
    fs::remove_dir_all(folder).unwrap();
}

/// What e2fsck with `options` says of the image: its exit status, of which 0 is clean and 1 is repaired, and its text.
pub fn check(options: &[&str]) -> (i32, String) {
    let output = Command::new("e2fsck").args(options).arg(IMAGE).output().unwrap();
    (output.status.code().unwrap_or(-1), text(&output))
}

/// The file at `path` of the image; nothing where there is none.
pub fn content(path: &str) -> Vec<u8> {
    let command = format!("cat {path}");
    let output = Command::new("debugfs")
        .args(["-R", &command, IMAGE])
        .output()
        .unwrap();
    assert!(output.status.success(), "debugfs: {}", text(&output));
    output.stdout
}

/// In the form in which the guest says it.
pub fn sum_of(bytes: &[u8]) -> String {
    fs::write("/tmp/summed", bytes).unwrap();
    let output = Command::new("md5sum").arg("/tmp/summed").output().unwrap();
    fs::remove_file("/tmp/summed").unwrap();
    let said = text(&output);
    said.split_whitespace().next().unwrap_or_default().to_owned()
}

/// As many MiB of noise.
fn random(mib: usize) -> Vec<u8> {
    let mut bytes = vec![0; mib << 20];
    io::Read::read_exact(&mut File::open("/dev/urandom").unwrap(), &mut bytes).unwrap();
    bytes
}

/// Serves one connection to `port`, which is open by then, in the background; what came of it is received.
pub fn connection<T: Send + 'static>(
    port: u16,
    serve: impl FnOnce(TcpStream) -> io::Result<T> + Send + 'static,
) -> Receiver<io::Result<T>> {
    let listener = TcpListener::bind((ADDRESS, port)).unwrap();
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let outcome = listener.accept().and_then(|(stream, _)| serve(stream));
        // Nobody waits for it when the scenario has failed.
        let _ = sender.send(outcome);
    });
    receiver
}

pub fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        text(&output)
    );
}

/// Both outputs of a program.
pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}
