use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::args;
use crate::completion::candidates;
use crate::environment::Globals;
use crate::output::{Stop, stdout};

/// Print a script that has a shell complete command lines
#[derive(Args)]
pub struct Completion {
    /// Which shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Clone, Copy, ValueEnum)]
enum Shell {
    /// source <(sublet completion bash)
    Bash,
    /// source <(sublet completion zsh)
    Zsh,
    /// sublet completion fish | source
    Fish,
}

impl Completion {
    pub fn execute(self, _: &Globals) -> Result<u8, Stop> {
        stdout(match self.shell {
            Shell::Bash => BASH,
            Shell::Zsh => ZSH,
            Shell::Fish => FISH,
        })?;
        Ok(0)
    }
}

/// What the scripts ask: the words after the program's name, the last of which is being typed
#[derive(Args)]
pub struct Complete {
    #[arg(last = true)]
    words: Vec<String>,
}

impl Complete {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let mut globals = globals.clone();
        // Whose names these are to be.
        for pair in self.words.windows(2) {
            match pair[0].as_str() {
                "--root" => globals.root = Some(PathBuf::from(&pair[1])),
                "--store" => globals.store = Some(pair[1].clone()),
                _ => {}
            }
        }
        let mut text = String::new();
        for candidate in candidates(&args::whole(), &self.words, &|| globals.engine().ok()) {
            let help = candidate.help.lines().next().unwrap_or_default();
            text.push_str(&candidate.word);
            if !help.is_empty() {
                text.push('\t');
                text.push_str(help);
            }
            text.push('\n');
        }
        stdout(&text)?;
        Ok(0)
    }
}

/// The line is taken apart at blanks alone, as bash has words end at `:` and `=`; of its own words it replaces the last.
const BASH: &str = r#"# bash completion of sublet
_sublet() {
    local line=${COMP_LINE:0:COMP_POINT} words word
    read -ra words <<<"$line"
    [[ $line == *[[:blank:]] ]] && words+=("")
    local current=${words[-1]} program=${words[0]/#\~/$HOME}
    local before=${current%"${current##*[:=]}"}
    COMPREPLY=()
    while IFS=$'\t' read -r word _; do
        COMPREPLY+=("${word#"$before"}")
    done < <("$program" __complete -- "${words[@]:1}" 2>/dev/null)
}
complete -o default -F _sublet sublet
"#;

const ZSH: &str = r#"#compdef sublet
_sublet() {
    local -a found
    local word help
    while IFS=$'\t' read -r word help; do
        found+=("${word//:/\\:}${help:+:$help}")
    done < <("${words[1]/#\~/$HOME}" __complete -- "${(@Q)words[2,CURRENT]}" 2>/dev/null)
    if (( $#found )); then
        _describe -V sublet found
    else
        _files
    fi
}
if [ "$funcstack[1]" = "_sublet" ]; then
    _sublet "$@"
else
    compdef _sublet sublet
fi
"#;

const FISH: &str = r"# fish completion of sublet
function __sublet_complete
    set -l words (commandline -opc) (commandline -ct)
    $words[1] __complete -- $words[2..-1] 2>/dev/null
end
complete -c sublet -n '__sublet_complete | string length -q' -f -a '(__sublet_complete)'
";
