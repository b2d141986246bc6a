//! From the prepared jail to the VMM: forks, PID file, limits, user, `execve`.

use std::ffi::{CString, OsString};
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::args::Args;
use crate::error::Error;
use crate::jail::{PidFile, Replacement};
use crate::program::Program;
use crate::sys;

/// Message of a child just before `execve`, which closes the pipe. A text follows if `execve` fails. No text begins with it.
const START: u8 = 0;

/// Clocks at the start of the jailer, for the VMM's arguments.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    start: Duration,
    processor: Duration,
}

impl Clocks {
    /// Reads the clocks.
    pub fn now() -> Self {
        Self {
            start: sys::time(libc::CLOCK_MONOTONIC),
            processor: processor_time(),
        }
    }
}

fn create_pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    sys::create_pipe().map_err(Error::call("create a pipe"))
}

fn processor_time() -> Duration {
    sys::time(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// Everything that the VMM needs, opened or allocated before the forks.
pub struct Launch {
    /// Path of the program in the jail.
    path: CString,
    /// Its arguments, as far as they do not depend on the time.
    head: Vec<CString>,
    rest: Vec<CString>,
    clocks: Clocks,
    /// Processor time of the processes before this one.
    earlier: Duration,
    daemonize: Option<OwnedFd>,
    new_pid_ns: bool,
    limits: Limits,
    uid: u32,
    gid: u32,
    files: Files,
}

/// Files of the jail that the launch completes.
pub struct Files {
    /// The file for the PID.
    pub pid: PidFile,
    /// The copy of the program, if it replaces an older file.
    pub program: Option<Replacement>,
}

/// Limits of the VMM.
#[derive(Clone, Copy)]
struct Limits {
    file_size: Option<u64>,
    open_files: u64,
}

impl Launch {
    /// Prepares the launch. `null` is `/dev/null` for `--daemonize`.
    ///
    /// # Errors
    /// Fails if an argument contains a NUL, which a command line cannot have.
    pub fn new(
        args: &Args,
        program: &Program,
        clocks: Clocks,
        null: Option<OwnedFd>,
        files: Files,
    ) -> Result<Self, Error> {
        let text = |text: &OsString| sys::c_string(text).map_err(Error::path("pass the argument", text));
        let path = text(&sys::affixed("/", &program.name, ""))?;
        let rest = args.rest.iter().map(text).collect::<Result<_, _>>()?;
        let mut head = vec![path.clone()];
        if !args.plain_arguments {
            head.extend([c"--id".to_owned(), text(&args.id.clone().into())?]);
        }
        Ok(Self {
            path,
            head,
            rest,
            clocks,
            earlier: Duration::ZERO,
            daemonize: null,
            new_pid_ns: args.new_pid_ns,
            limits: Limits {
                file_size: args.file_size,
                open_files: args.open_files,
            },
            uid: args.uid,
            gid: args.gid,
            files,
        })
    }

    /// Becomes the VMM. Returns only in the process that stays behind, after the start of the VMM by a child, or with an error.
    ///
    /// A child reports its failure by a pipe, which the `execve` of the VMM closes: its stderr may be `/dev/null`, and this process
    /// alone undoes the steps. The end of the pipe without a message is the end of a killed child.
    ///
    /// # Errors
    /// Fails if a step of this process or of a child fails.
    pub fn start(mut self) -> Result<(), Error> {
        if self.daemonize.is_none() && !self.new_pid_ns {
            self.files.pid.publish(sys::process_id())?;
            return Err(self.execute(None));
        }
        let (reader, writer) = create_pipe()?;
        self.earlier = processor_time();
        let is_child = match &self.daemonize {
            Some(_) => self.fork()?.is_none(),
            None => self.fork_into_namespace()?,
        };
        if is_child {
            let message = self.run_child(&writer).describe();
            // The parent has the other end. If it has ended, the message has no reader.
            let _ = sys::write(&writer, message.as_bytes());
            sys::exit(1);
        }
        drop(writer);
        let message = sys::read_all(&reader).map_err(Error::call("wait for the start of the VMM"))?;
        evaluate(&message)
    }

    fn fork(&self) -> Result<Option<libc::pid_t>, Error> {
        sys::fork(false).map_err(Error::call("create a process for --daemonize"))
    }

    /// Creates process 1 of a PID namespace, which becomes the VMM. It continues once its parent, which alone can tell its PID, has
    /// published the PID. Returns true in the child.
    fn fork_into_namespace(&self) -> Result<bool, Error> {
        let operation = "create a process in a new PID namespace";
        let (reader, writer) = create_pipe()?;
        let Some(pid) = sys::fork(true).map_err(Error::call(operation))? else {
            drop(writer);
            let published = sys::read_all(&reader).map_err(Error::call("wait for the PID file"))?;
            if published.is_empty() {
                // The parent has failed, and reports it.
                sys::exit(1);
            }
            return Ok(true);
        };
        drop(reader);
        self.files.pid.publish(pid)?;
        // If the child has been killed, the pipe of messages shows its end.
        let _ = sys::write(&writer, b"1");
        Ok(false)
    }

    /// Continues in the first child. Returns only a failure.
    fn run_child(&mut self, messages: &OwnedFd) -> Error {
        match self.daemonize.take() {
            None => self.execute(Some(messages)),
            Some(null) => match self.daemonize(&null) {
                Ok(()) => self.execute(Some(messages)),
                Err(error) => error,
            },
        }
    }

    /// Begins a session, and returns in the process that becomes the VMM. A second fork keeps the VMM from leading the session:
    /// a leader could acquire a terminal.
    fn daemonize(&mut self, null: &OwnedFd) -> Result<(), Error> {
        sys::begin_session().map_err(Error::call("begin a session"))?;
        self.add_processor_time();
        if self.fork()?.is_some() {
            sys::exit(0);
        }
        sys::replace_standard_descriptors(null).map_err(Error::call("redirect stdin, stdout and stderr"))?;
        if !self.new_pid_ns {
            return self.files.pid.publish(sys::process_id());
        }
        self.add_processor_time();
        if !self.fork_into_namespace()? {
            sys::exit(0);
        }
        Ok(())
    }

    /// Adds the time of this process, which forks, to that of its ancestors.
    fn add_processor_time(&mut self) {
        self.earlier += processor_time();
    }

    /// Sets limits, group and user, and executes the VMM. A child announces that in `messages`. Returns only a failure.
    fn execute(&self, messages: Option<&OwnedFd>) -> Error {
        if let Err(error) = self.limits.apply() {
            return error;
        }
        let arguments = match self.arguments() {
            Ok(arguments) => arguments,
            Err(error) => return error,
        };
        if let Err(error) = sys::set_user(self.uid, self.gid) {
            let operation = "change to the group and user of --gid and --uid";
            return Error::call(operation)(error);
        }
        if let Some(program) = &self.files.program
            && let Err(error) = program.finish()
        {
            return error;
        }
        if let Some(messages) = messages {
            // Fails if the parent has ended.
            let _ = sys::write(messages, &[START]);
        }
        let path = self.path.to_string_lossy().into_owned();
        let error = sys::execute(&self.path, &arguments);
        Error::path("execute in the jail", path)(error)
    }

    /// Returns all arguments. The jailer's clocks come first, as Firecracker's jailer passes them.
    fn arguments(&self) -> Result<Vec<CString>, Error> {
        let is_forked = self.earlier != Duration::ZERO;
        // A child begins at 0.
        let start = if is_forked {
            Duration::ZERO
        } else {
            self.clocks.processor
        };
        let own = processor_time().saturating_sub(start);
        let earlier = self.earlier.saturating_sub(self.clocks.processor);
        let times = [
            ("--start-time-us", self.clocks.start),
            ("--start-time-cpu-us", start),
            ("--parent-cpu-time-us", earlier + own),
        ];
        let mut arguments = self.head.clone();
        // Only the program, without the jailer's arguments.
        if arguments.len() == 1 {
            arguments.extend(self.rest.iter().cloned());
            return Ok(arguments);
        }
        for (option, time) in times {
            let time = time.as_micros().to_string();
            for word in [option, &time] {
                arguments.push(sys::c_string(word).map_err(Error::path("pass the argument", word))?);
            }
        }
        arguments.extend(self.rest.iter().cloned());
        Ok(arguments)
    }
}

/// Evaluates all that a child has sent until its `execve` or end.
fn evaluate(message: &[u8]) -> Result<(), Error> {
    match message {
        [START] => Ok(()),
        [] => Err(Error::Killed),
        [START, text @ ..] | text => Err(Error::Child(String::from_utf8_lossy(text).into_owned())),
    }
}

impl Limits {
    fn apply(&self) -> Result<(), Error> {
        if let Some(size) = self.file_size {
            let result = sys::set_limit(libc::RLIMIT_FSIZE, size);
            result.map_err(Error::call("set the limit of --resource-limit fsize"))?;
        }
        let result = sys::set_limit(libc::RLIMIT_NOFILE, self.open_files);
        result.map_err(Error::call("set the limit of --resource-limit no-file"))
    }
}

#[cfg(test)]
mod tests {
    use super::{Error, evaluate};

    #[test]
    fn only_an_announced_execution_is_a_start() {
        assert!(evaluate(&[0]).is_ok());
        assert!(matches!(evaluate(&[]), Err(Error::Killed)));
        for message in [&b"a reason"[..], b"\0a reason"] {
            let result = evaluate(message);
            assert!(
                matches!(&result, Err(Error::Child(text)) if text == "a reason"),
                "{result:?}"
            );
        }
    }
}
