//! Completions of bash, which need no other functions.

use std::fmt::Write as _;

use crate::options::{Command, Kind, Opt, Program};

/// Returns the completions of `program`.
pub fn completion(program: &Program) -> String {
    let function = format!("_{}", program.name.replace('-', "_"));
    let mut script = format!(
        "# Completions of {} for bash. Generated from its help texts. Do not edit.\n\n{function}() {{\n",
        program.name
    );
    script.push_str(
        "    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} command= sign= index\n    \
         COMPREPLY=()\n    \
         # --option=VALUE is three words: bash splits at the sign.\n    \
         if [[ $word == = ]]; then sign== word=; elif [[ $before == = ]]; then sign== before=${COMP_WORDS[COMP_CWORD - 2]}; fi\n    \
         for ((index = 1; index < COMP_CWORD; index++)); do\n        \
         case \"$command ${COMP_WORDS[index]}\" in\n",
    );
    for command in &program.commands {
        let _ = writeln!(script, "            ' {0}') command={0} ;;", command.name);
        for inner in &command.commands {
            let _ = writeln!(
                script,
                "            '{0} {1}') command={0}/{1} ;;",
                command.name, inner.name
            );
        }
    }
    script.push_str("            *' --') return ;;\n        esac\n    done\n    case $command in\n");
    if !program.commands.is_empty() {
        // The options before the commands are Firecracker's.
        script.push_str("        '')\n            # They take no value after the sign.\n            [[ -z $sign ]] || return 0\n            ;;&\n");
    }
    add_case(
        &mut script,
        "''",
        &program.options,
        &names(&program.commands),
        &Kind::Other,
    );
    for command in &program.commands {
        add_case(
            &mut script,
            &command.name,
            &command.options,
            &names(&command.commands),
            &command.argument,
        );
        for inner in &command.commands {
            let label = format!("{}/{}", command.name, inner.name);
            add_case(&mut script, &label, &inner.options, "", &inner.argument);
        }
    }
    let _ = write!(
        script,
        "    esac\n}}\n\ncomplete -F {function} {}\n",
        program.name
    );
    script
}

fn names(commands: &[Command]) -> String {
    let names: Vec<&str> = commands.iter().map(|command| command.name.as_str()).collect();
    names.join(" ")
}

/// Adds the branch of the command `label`: values of options, options, commands, arguments.
fn add_case(script: &mut String, label: &str, options: &[Opt], commands: &str, argument: &Kind) {
    let _ = writeln!(script, "        {label})\n            case $before in");
    for option in options.iter().filter(|option| option.value.is_some()) {
        let reply = reply(&option.kind());
        let _ = writeln!(
            script,
            "                {}) {reply} return ;;",
            option.names.join(" | ")
        );
    }
    script.push_str("            esac\n");
    let names: Vec<&str> = options
        .iter()
        .flat_map(|option| &option.names)
        .map(String::as_str)
        .collect();
    let words = format!("{} {commands}", names.join(" "));
    let _ = writeln!(
        script,
        "            if [[ $word == -* ]]; then COMPREPLY=($(compgen -W '{}' -- \"$word\")); return; fi",
        names.join(" ")
    );
    if commands.is_empty() {
        let _ = writeln!(script, "            {}", reply(argument).trim_end());
    } else {
        let _ = writeln!(
            script,
            "            COMPREPLY=($(compgen -W '{}' -- \"$word\"))",
            words.trim()
        );
    }
    script.push_str("            ;;\n");
}

/// Returns the commands that complete a value.
fn reply(kind: &Kind) -> String {
    match kind {
        Kind::Other => ":;".into(),
        Kind::File => "compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- \"$word\");".into(),
        Kind::Directory => "compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- \"$word\");".into(),
        Kind::Words(words) => format!("COMPREPLY=($(compgen -W '{}' -- \"$word\"));", words.join(" ")),
    }
}
