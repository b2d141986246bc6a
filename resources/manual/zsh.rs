//! Completions of zsh.

use std::fmt::Write as _;

use crate::options::{Command, Kind, Opt, Program, kind};

/// Returns the completions of `program`.
pub fn completion(program: &Program) -> String {
    let name = program.name;
    let mut script = format!(
        "#compdef {name}\n# Completions of {name} for zsh. Generated from its help texts. Do not edit.\n\n_{name}() {{\n"
    );
    // Without success of the function, zsh looks for other completions, and inserts none.
    script.push_str("  local context state state_descr line ret=1\n  typeset -A opt_args\n");
    if program.commands.is_empty() {
        add_arguments(&mut script, &program.options, &Kind::Other, 1);
    } else {
        // The options before the commands are Firecracker's, which take no value after the sign =.
        add_dispatch(&mut script, &program.options, "", &program.commands, 1);
    }
    let _ = write!(script, "  return ret\n}}\n\n_{name} \"$@\"\n");
    script
}

/// Adds options, and commands with their own arguments, at the indentation `depth`. `sign` is that between an option and its value, or empty
/// for a value in the next word.
fn add_dispatch(script: &mut String, options: &[Opt], sign: &str, commands: &[Command], depth: usize) {
    let space = "  ".repeat(depth);
    let _ = writeln!(script, "{space}_arguments -S -C \\");
    for option in options {
        let _ = writeln!(script, "{space}  {} \\", specification(option, sign));
    }
    let _ = writeln!(script, "{space}  '1: :->command' '*:: :->arguments' && ret=0");
    let _ = writeln!(
        script,
        "{space}case $state in\n{space}command)\n{space}  local -a commands=("
    );
    for command in commands {
        let text = format!("{}:{}", command.name, command.summary);
        let _ = writeln!(script, "{space}    {}", quote(&text));
    }
    let _ = writeln!(
        script,
        "{space}  )\n{space}  _describe command commands && ret=0\n{space}  ;;"
    );
    let _ = writeln!(script, "{space}arguments)\n{space}  case $words[1] in");
    for command in commands {
        let _ = writeln!(script, "{space}  {})", command.name);
        if command.commands.is_empty() {
            add_arguments(script, &command.options, &command.argument, depth + 2);
        } else {
            add_dispatch(script, &command.options, "=", &command.commands, depth + 2);
        }
        let _ = writeln!(script, "{space}    ;;");
    }
    let _ = writeln!(script, "{space}  esac\n{space}  ;;\n{space}esac");
}

/// Adds options and arguments of a command.
fn add_arguments(script: &mut String, options: &[Opt], argument: &Kind, depth: usize) {
    let space = "  ".repeat(depth);
    let _ = writeln!(script, "{space}_arguments -S \\");
    for option in options {
        let _ = writeln!(script, "{space}  {} \\", specification(option, "="));
    }
    let rest = match argument {
        Kind::Other => String::new(),
        _ => quote(&format!("*: :{}", action(argument))) + " ",
    };
    let _ = writeln!(script, "{space}  {rest}&& ret=0");
}

/// Returns the specification of an option, such as `'(-m --memory)'{-m,--memory=}'[set it]:SIZE:'`.
fn specification(option: &Opt, sign: &str) -> String {
    let summary = option.summary.replace(['[', ']'], "").replace(':', "\\:");
    let rest = match &option.value {
        Some(value) => {
            let label = value.replace(':', "\\:");
            format!("[{summary}]:{label}:{}", action(&kind(value)))
        }
        None => format!("[{summary}]"),
    };
    let mark = |name: &str| match &option.value {
        Some(_) if name.starts_with("--") => format!("{name}{sign}"),
        _ => name.to_owned(),
    };
    match option.names.as_slice() {
        [one] => quote(&format!("*{}{rest}", mark(one))),
        names => {
            let marked: Vec<String> = names.iter().map(|name| mark(name)).collect();
            format!("'({})'{{{}}}{}", names.join(" "), marked.join(","), quote(&rest))
        }
    }
}

/// Returns the action that completes a value.
fn action(kind: &Kind) -> String {
    match kind {
        Kind::Other => " ".into(),
        Kind::File => "_files".into(),
        Kind::Directory => "_files -/".into(),
        Kind::Words(words) => format!("({})", words.join(" ")),
    }
}

/// Quotes `text` for the shell.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}
