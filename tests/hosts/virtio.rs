//! Debian's Linux with its virtio drivers as the guest, on drives with ext4 and on a tap. The guest runs guest-virtio.sh. This
//! kernel ignores devices on its command line (CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES is not set) and finds them by ACPI alone.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use crate::guest::{Guest, TIMEOUT};

/// Disk image, on the rootfs of the emulated host.
pub const IMAGE: &str = "/tmp/drive";
/// Image of a second drive. A boot takes most of the time of a scenario: two drives share it.
const SECOND_IMAGE: &str = "/tmp/drive-2";
/// Both images with the devices that the guest has for them, in the order of their drives.
const IMAGES: [(&str, &str); 2] = [(IMAGE, "vda"), (SECOND_IMAGE, "vdb")];
/// Address of the host, in the subnet of guest-virtio.sh.
const ADDRESS: &str = "10.77.0.1";
/// Maximum number of drives beside one interface.
const DRIVES: usize = 17;

scenarios! {
    files_with_write_through_cache => check_files(["engine=sync", "engine=async"], "");
    files_with_writeback_cache => check_files(["engine=sync,cache=writeback", "engine=async,cache=writeback"], "--cpus 2");
    files_with_kernel_irqchip => check_files(["engine=sync,cache=writeback", "engine=async"], "--irqchip kernel");
    read_only_drives_stay_unchanged => check_read_only(["engine=sync", "engine=async"]);
    kill_during_writes_keeps_synced_files => check_kill(["engine=sync,cache=writeback", "engine=async,cache=writeback"]);
    packets_each_way => check_packets("", 100);
    // Less traffic: two vCPUs spin for each other on the one CPU of the emulated host.
    packets_each_way_with_two_cpus => check_packets("--cpus 2", 20);
    devices_by_acpi_and_arguments => check_devices("", "yes");
    devices_by_acpi_alone => check_devices("--no-device-arguments", "no");
}

/// Checks that the images hold the guest's files after its exit, in a consistent file system. Each drive has its options in `drives`.
fn check_files(drives: [&str; 2], options: &str) {
    for (image, _) in IMAGES {
        create_image_at(image, &[]);
    }
    let mut guest = start(&format!("{} {options}", drive_options(drives)));
    let sums = IMAGES.map(|(_, device)| run_task(&mut guest, &format!("fill 12 150 {device}")));
    guest.type_line("poweroff -f");
    guest.expect_exit(0);
    for ((image, _), sum) in IMAGES.into_iter().zip(sums) {
        let (code, output) = run_e2fsck_at(image, &["-f", "-n"]);
        assert_eq!(code, 0, "{image}: e2fsck: {output}");
        assert_eq!(md5sum(&read_file_at(image, "large")), sum, "{image}");
        assert_eq!(read_file_at(image, "many/99"), b"file 99\n", "{image}");
        assert_eq!(read_file_at(image, "many/1"), b"", "{image}: it was deleted");
    }
}

/// Returns the options of mayfly for [`IMAGES`].
fn drive_options(drives: [&str; 2]) -> String {
    let both = IMAGES.into_iter().zip(drives);
    let options: Vec<String> = both
        .map(|((image, _), options)| format!("--disk {image},{options}"))
        .collect();
    options.join(" ")
}

/// Checks that the guest reads the host's files, and that its writes fail and leave the images unchanged.
fn check_read_only(drives: [&str; 2]) {
    let contents = IMAGES.map(|(image, _)| {
        let large = random_bytes(4);
        create_image_at(image, &large);
        (md5sum(&large), md5sum(&fs::read(image).unwrap()))
    });
    let mut guest = start(&drive_options(
        drives
            .map(|options| format!("ro,{options}"))
            .each_ref()
            .map(String::as_str),
    ));
    let sums = IMAGES.map(|(_, device)| run_task(&mut guest, &format!("verify {device}")));
    guest.type_line("poweroff -f");
    guest.expect_exit(0);
    for (((image, _), sum), (large, before)) in IMAGES.into_iter().zip(sums).zip(contents) {
        assert_eq!(sum, large, "{image}");
        assert_eq!(md5sum(&fs::read(image).unwrap()), before, "{image}");
    }
}

/// Checks that SIGKILL during writes to both drives requires only a journal replay of each, and keeps all synced files.
fn check_kill(drives: [&str; 2]) {
    for (image, _) in IMAGES {
        create_image_at(image, &[]);
    }
    let mut guest = start(&drive_options(drives));
    // The shell runs the first task in the background, and each task has a directory of its own.
    guest.type_line("virtio churn vdb &");
    guest.type_line("virtio churn vda");
    let mut kept = IMAGES.map(|(_, device)| (device, Vec::new()));
    while kept.iter().any(|(_, lines)| lines.len() < 12) {
        guest.expect("kept ");
        let line = guest.expect(" end");
        let (device, line) = line.split_once(' ').unwrap();
        let (_, lines) = kept.iter_mut().find(|(name, _)| *name == device).unwrap();
        lines.push(line.to_owned());
    }
    // Drop sends SIGKILL.
    drop(guest);
    for ((image, _), (_, lines)) in IMAGES.into_iter().zip(kept) {
        check_journal(image, &lines);
    }
}

/// Checks `image` after a kill, and the last files of `kept` that churn has not removed.
fn check_journal(image: &str, kept: &[String]) {
    let (_, output) = run_e2fsck_at(image, &["-f", "-n"]);
    assert!(
        output.contains("skipping journal recovery"),
        "{image}: no write was in flight: {output}"
    );
    let (code, output) = run_e2fsck_at(image, &["-p", "-E", "journal_only"]);
    assert!(code <= 1, "{image}: the journal replay failed: {code}: {output}");
    let (code, output) = run_e2fsck_at(image, &["-f", "-n"]);
    assert_eq!(code, 0, "{image}: the file system is inconsistent: {output}");
    // churn removes older files.
    for line in &kept[kept.len() - 4..] {
        let (name, sum) = line.split_once(' ').unwrap();
        assert_eq!(md5sum(&read_file_at(image, name)), sum, "{image}: file {name}");
    }
}

/// Checks ping, and a transfer of `traffic` MiB in each direction.
fn check_packets(options: &str, traffic: usize) {
    create_tap();
    let mut guest = start(&format!("{options} --net tap:tap0,mac=02:00:00:00:77:02"));
    configure_tap();
    assert_eq!(run_task(&mut guest, "interface"), "02:00:00:00:77:02");

    let received = serve_connection(5001, |mut stream| {
        let mut bytes = Vec::new();
        io::copy(&mut stream, &mut bytes).map(|_| bytes)
    });
    let sum = run_task(&mut guest, &format!("send {traffic}"));
    let bytes = received.recv_timeout(TIMEOUT).unwrap().unwrap();
    assert_eq!(bytes.len(), traffic << 20);
    assert_eq!(md5sum(&bytes), sum);

    let sent = random_bytes(traffic);
    let sum = md5sum(&sent);
    let written = serve_connection(5002, move |mut stream| stream.write_all(&sent));
    assert_eq!(run_task(&mut guest, "receive"), sum);
    written.recv_timeout(TIMEOUT).unwrap().unwrap();

    guest.type_line("poweroff -f");
    guest.expect_exit(0);
    remove_tap();
}

/// Checks that the guest finds the maximum number of devices in their order, and that the interrupt of each works.
fn check_devices(options: &str, arguments: &str) {
    let names: Vec<String> = (0..DRIVES).map(|number| format!("drive-{number:02}")).collect();
    let mut drives = String::new();
    for name in &names {
        let mut sector = format!("this is {name}\n").into_bytes();
        sector.resize(512, 0);
        fs::write(format!("/tmp/{name}"), sector).unwrap();
        drives.push_str(&format!("--disk /tmp/{name},id={name} "));
    }
    create_tap();
    let mut guest = start(&format!("{drives} --net tap:tap0 {options}"));
    let found = run_task(&mut guest, "devices");
    guest.type_line("poweroff -f");
    guest.expect_exit(0);
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

/// Creates a tap, and removes the one of a failed scenario before.
pub fn create_tap() {
    remove_tap();
    run_program("tunctl", &["-t", "tap0"]);
}

/// Sets the host's address of the tap.
pub fn configure_tap() {
    run_program("ip", &["address", "add", &format!("{ADDRESS}/24"), "dev", "tap0"]);
    run_program("ip", &["link", "set", "tap0", "up"]);
}

pub fn remove_tap() {
    run_program("tunctl", &["-d", "tap0"]);
}

/// Boots Linux with `options` up to its prompt.
pub fn start(options: &str) -> Guest {
    let mut guest = Guest::start(&format!(
        "/images/vmlinuz --initrd /images/initrd --memory 512M {options} -- console=ttyS0 quiet panic=-1"
    ));
    guest.expect("prompt> ");
    guest
}

/// Runs `task` of guest-virtio.sh, which must succeed. Returns its result.
pub fn run_task(guest: &mut Guest, task: &str) -> String {
    guest.type_line(&format!("virtio {task}"));
    guest.expect("virtio: ");
    let result = guest.expect(" end");
    match result.strip_prefix("ok ") {
        Some(text) => text.to_owned(),
        None => guest.fail(&format!("the task {task} failed")),
    }
}

/// Creates [`IMAGE`], an ext4 image with the file `large`, unless that is empty.
pub fn create_image(large: &[u8]) {
    create_image_at(IMAGE, large);
}

fn create_image_at(image: &str, large: &[u8]) {
    let directory = Path::new("/tmp/content");
    fs::create_dir_all(directory).unwrap();
    let _ = fs::remove_file(image);
    if !large.is_empty() {
        fs::write(directory.join("large"), large).unwrap();
    }
    run_program(
        "mke2fs",
        &["-q", "-t", "ext4", "-d", "/tmp/content", image, "64M"],
    );
    fs::remove_dir_all(directory).unwrap();
}

/// Runs e2fsck on [`IMAGE`]. Returns its exit status, 0 for clean and 1 for repaired, and its output.
pub fn run_e2fsck(options: &[&str]) -> (i32, String) {
    run_e2fsck_at(IMAGE, options)
}

fn run_e2fsck_at(image: &str, options: &[&str]) -> (i32, String) {
    let output = scratch::run(Command::new("e2fsck").args(options).arg(image));
    (output.status.code().unwrap_or(-1), output_text(&output))
}

/// Returns the file at `path` of [`IMAGE`], empty if it is missing.
pub fn read_file(path: &str) -> Vec<u8> {
    read_file_at(IMAGE, path)
}

fn read_file_at(image: &str, path: &str) -> Vec<u8> {
    let command = format!("cat {path}");
    let output = scratch::run(Command::new("debugfs").args(["-R", &command, image]));
    assert!(output.status.success(), "debugfs: {}", output_text(&output));
    output.stdout
}

/// Returns the MD5 sum as the guest prints it.
pub fn md5sum(bytes: &[u8]) -> String {
    fs::write("/tmp/summed", bytes).unwrap();
    let output = scratch::run(Command::new("md5sum").arg("/tmp/summed"));
    fs::remove_file("/tmp/summed").unwrap();
    let printed = output_text(&output);
    printed.split_whitespace().next().unwrap_or_default().to_owned()
}

/// Returns `mib` MiB of random bytes.
fn random_bytes(mib: usize) -> Vec<u8> {
    let mut bytes = vec![0; mib << 20];
    io::Read::read_exact(&mut File::open("/dev/urandom").unwrap(), &mut bytes).unwrap();
    bytes
}

/// Listens on `port`, and serves one connection on a new thread. The receiver gets the result.
pub fn serve_connection<T: Send + 'static>(
    port: u16,
    serve: impl FnOnce(TcpStream) -> io::Result<T> + Send + 'static,
) -> Receiver<io::Result<T>> {
    let listener = TcpListener::bind((ADDRESS, port)).unwrap();
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let stream = scratch::accept(&listener);
        let limits = [
            stream.set_read_timeout(Some(TIMEOUT)),
            stream.set_write_timeout(Some(TIMEOUT)),
        ];
        let result = limits
            .into_iter()
            .collect::<io::Result<()>>()
            .and_then(|()| serve(stream));
        // After a failure of the scenario the receiver is gone.
        let _ = sender.send(result);
    });
    receiver
}

pub fn run_program(program: &str, arguments: &[&str]) {
    let output = scratch::run(Command::new(program).args(arguments));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        output_text(&output)
    );
}

/// Returns stdout and stderr of a program.
pub fn output_text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}
