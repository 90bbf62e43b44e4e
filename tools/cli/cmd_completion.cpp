// Completion scripts for bash and zsh, from a description of the command line that main.cpp takes from the parser: a script
// is printed once and asks nothing when it runs.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstdio>
#include <map>

#include "jit/print.h"
#include "tools/cli/commands.h"

namespace weft {
namespace {

std::vector<std::string> names_of(const std::vector<CompletionWord>& words) {
  std::vector<std::string> names;
  for (const CompletionWord& word : words)
    if (word.name.starts_with('-')) names.push_back(word.name);
  return names;
}

// ---- bash -------------------------------------------------------------------------------------------------------------------

// What fills COMPREPLY with the values of `word`, or "" where nothing is known of them.
std::string bash_values(const CompletionWord& word) {
  switch (word.takes) {
    case CompletionWord::file:
      return "compgen -f -- \"$current\"";
    case CompletionWord::folder:
      return "compgen -d -- \"$current\"";
    default:
      return word.words.empty() ? "" : fmt::format("compgen -W '{}' -- \"$current\"", fmt::join(word.words, " "));
  }
}

// Cases of `case COMMAND:WORD in`, those that end alike in one.
std::string bash_cases(const std::map<std::string, std::string>& patterns) {
  std::string cases;
  for (const auto& [values, pattern] : patterns)
    cases += fmt::format("    {}) {};;\n", pattern, values.empty() ? "" : fmt::format("mapfile -t COMPREPLY < <({}) ", values));
  return cases;
}

struct BashTables {
  std::map<std::string, std::string> values;  // what completes a value, and the pattern COMMAND:OPTION where it does
  std::string words;                          // cases of COMMAND:WORD
  std::string commands;                       // pattern of all commands
};

// `path` is the command with those above it: "data make", "" for the program.
void add_to(BashTables& tables, const CompletionCommand& command, const std::string& path) {
  const std::string options = fmt::format("compgen -W '{}' -- \"$current\"", fmt::join(names_of(command.words), " "));
  std::string place = options, names;  // what stands without an option's name
  for (const CompletionWord& word : command.words) {
    if (!word.name.starts_with('-')) {
      place = bash_values(word);
    } else if (word.takes != CompletionWord::nothing) {
      std::string& pattern = tables.values[bash_values(word)];
      pattern += fmt::format("{}'{}:{}'", pattern.empty() ? "" : "|", path, word.name);
    }
  }
  for (const CompletionCommand& sub : command.commands) names += (names.empty() ? "" : " ") + sub.name;
  if (!names.empty()) place = fmt::format("compgen -W '{}' -- \"$current\"", names);
  tables.words += bash_cases({{options, fmt::format("'{}:'-*", path)}}) + bash_cases({{place, fmt::format("'{}:'*", path)}});
  for (const CompletionCommand& sub : command.commands) {
    const std::string below = path.empty() ? sub.name : path + " " + sub.name;
    tables.commands += fmt::format("{}'{}'", tables.commands.empty() ? "" : "|", below);
    add_to(tables, sub, below);
  }
}

std::string bash_script(const CompletionCommand& program) {
  BashTables tables;
  add_to(tables, program, "");
  return fmt::format(R"(# bash completion for weft; printed by `weft completion bash`

_weft() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD - 1]}} command= i
  for ((i = 1; i < COMP_CWORD; ++i)); do
    case "${{command:+$command }}${{COMP_WORDS[i]}}" in
      {}) command="${{command:+$command }}${{COMP_WORDS[i]}}" ;;
    esac
  done
  # --option=value is three words here
  if [[ $current == '=' ]]; then
    current=
  elif [[ $previous == '=' ]]; then
    previous=${{COMP_WORDS[COMP_CWORD - 2]}}
  fi
  COMPREPLY=()
  compopt -o filenames 2>/dev/null  # quotes what needs it
  case $command:$previous in
{}    *) case $command:$current in
{}    esac ;;
  esac
}}
complete -F _weft weft
)",
                     tables.commands, bash_cases(tables.values), tables.words);
}

// ---- zsh --------------------------------------------------------------------------------------------------------------------

std::string zsh_text(const std::string& text) {
  std::string quoted;
  for (char c : text) {
    if (c == '[' || c == ']' || c == ':' || c == '\\') quoted += '\\';
    quoted += c == '\'' ? "'\\''" : std::string(1, c);
  }
  return quoted;
}

std::string zsh_action(const CompletionWord& word) {
  switch (word.takes) {
    case CompletionWord::file:
      return "_files";
    case CompletionWord::folder:
      return "_files -/";
    default:
      return word.words.empty() ? "" : fmt::format("({})", fmt::join(word.words, " "));
  }
}

std::string zsh_argument(const CompletionWord& word) {
  if (!word.name.starts_with('-'))
    return fmt::format("'{}:{}:{}'", word.many ? "*" : "1", zsh_text(word.name), zsh_action(word));
  const bool value = word.takes != CompletionWord::nothing;
  return fmt::format("'{}{}[{}]{}'", word.name, value ? "=" : "", zsh_text(word.help),
                     value ? ":value:" + zsh_action(word) : "");
}

// The functions of a command with others below it, innermost first.
std::string zsh_functions(const CompletionCommand& command, const std::string& function) {
  std::string below, names, cases, options;
  for (const CompletionWord& word : command.words) options += " \\\n    " + zsh_argument(word);
  for (const CompletionCommand& sub : command.commands) {
    names += fmt::format("        '{}:{}'\n", sub.name, zsh_text(sub.help));
    cases += fmt::format("        {})\n          ", sub.name);
    if (sub.commands.empty()) {
      cases += "_arguments";
      for (const CompletionWord& word : sub.words) cases += " \\\n            " + zsh_argument(word);
    } else {
      cases += function + "_" + sub.name;
      below += zsh_functions(sub, function + "_" + sub.name);
    }
    cases += "\n          ;;\n";
  }
  return below + fmt::format(R"(
{}() {{
  local curcontext=$curcontext state line
  local -a commands
  _arguments -C{} \
    '1:command:->command' '*::argument:->argument'
  case $state in
    command)
      commands=(
{}      )
      _describe command commands
      ;;
    argument)
      case $words[1] in
{}      esac
      ;;
  esac
}}
)",
                             function, options, names, cases);
}

std::string zsh_script(const CompletionCommand& program) {
  return fmt::format(R"(#compdef weft
# zsh completion for weft; printed by `weft completion zsh`
{}
if [[ $funcstack[1] == _weft ]]; then
  _weft "$@"
else
  compdef _weft weft
fi
)",
                     zsh_functions(program, "_weft"));
}

}  // namespace

int cmd_completion(const std::string& shell, const CompletionCommand& program) {
  print("{}", shell == "zsh" ? zsh_script(program) : bash_script(program));
  return 0;
}

}  // namespace weft
