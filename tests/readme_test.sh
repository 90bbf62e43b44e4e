#!/usr/bin/env bash
# readme_test.sh SOURCE BUILD COMPILER: every C++ block of README.md, and of the comments in the headers, compiles against the
# installed package and runs. What a block is stands in a comment on the line above it; the comment may hold code that the
# reader need not see:
#   <!-- cpp: program -->      a whole file
#   <!-- cpp: definitions CODE -->  functions and types; CODE follows them, an empty main if it has none
#   <!-- cpp: body CODE -->    statements of a main; CODE comes before them
#   <!-- cpp: skip REASON -->  not compiled
# Without a comment a block is a program if it has an `int main`, else definitions.
set -euo pipefail
source=$1 build=$2 compiler=$3
export CMAKE_GENERATOR
CMAKE_GENERATOR=$(sed -n 's/^CMAKE_GENERATOR:INTERNAL=//p' "$build/CMakeCache.txt")  # the default one may not be installed
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ ! -f "$source/README.md" ]; then
  echo "no README.md"
  exit 77
fi

extract() {  # NAME: the blocks of the Markdown on standard input
  awk -v work="$work" -v tick='```' -v name="$1" '
  function finish(    file, head) {
    file = name
    gsub(/[^A-Za-z0-9]/, "_", file)
    file = sprintf("%s/block_%s_%d.cpp", work, file, line)
    head = "#include <weft/weft.h>\n\nusing namespace weft;\n\n"
    if (kind == "") kind = text ~ /int main/ ? "program" : "definitions"
    if (kind == "skip") return
    if (kind == "program") printf "#line %d \"%s\"\n%s", line + 1, name, text > file
    else if (kind == "definitions")
      printf "%s#line %d \"%s\"\n%s\n%s\n%s\n", head, line + 1, name, text, code, code ~ /int main/ ? "" : "int main() {}" > file
    else if (kind == "body") printf "%sint main() {\n%s\n#line %d \"%s\"\n%s}\n", head, code, line + 1, name, text > file
    else { printf "%s:%d: unknown kind of block: %s\n", name, line, kind > "/dev/stderr"; exit 1 }
    close(file)
  }
  inside && $0 == tick { inside = 0; finish(); kind = code = ""; next }
  inside { text = text $0 "\n"; next }
  $0 == tick "cpp" { inside = 1; text = ""; line = NR; next }
  comment || /^<!-- cpp: / {
    if (!comment) { kind = $3; code = ""; comment = 1; sub(/^<!-- cpp: [a-z]+/, "") }
    if (/-->/) { comment = 0; sub(/-->.*/, "") }
    code = code $0 "\n"
    next
  }
  NF { kind = code = "" }
'
}
extract README.md <"$source/README.md"
# In a header a block stands in a comment, and what looks like code there must stand in a block.
cd "$source"
for header in $(find autograd jit models nn ops optim tools -name '*.h' | sort); do
  grep -q '^ *// *```cpp' "$header" && sed 's,^ *// \{0\,1\},,' "$header" | extract "$header"
  if awk '/^ *\/\/ *```/ { inside = !inside }
          !inside && /^ *\/\/  .*[;{] *$/ && /\(|struct|class/ { print FILENAME ":" FNR ": " $0; found = 1 }
          END { exit !found }' "$header" >&2; then
    echo "an example that is not compiled: put it between // \`\`\`cpp and // \`\`\`" >&2
    exit 1
  fi
done
cd - >/dev/null

shopt -s nullglob
blocks=("$work"/block_*.cpp)
if [ ${#blocks[@]} -eq 0 ]; then
  echo "README.md has no C++ block" >&2
  exit 1
fi
cmake --install "$build" --prefix "$work/prefix" >/dev/null
cat >"$work/CMakeLists.txt" <<'END'
cmake_minimum_required(VERSION 3.25)
project(readme LANGUAGES CXX)
find_package(weft REQUIRED)
file(GLOB blocks block_*.cpp)
foreach(block IN LISTS blocks)
  get_filename_component(name ${block} NAME_WE)
  add_executable(${name} ${block})
  target_link_libraries(${name} PRIVATE weft::weft)
endforeach()
END
cmake -S "$work" -B "$work/build" -DCMAKE_CXX_COMPILER="$compiler" -DCMAKE_PREFIX_PATH="$work/prefix" >"$work/log" 2>&1 &&
  cmake --build "$work/build" --parallel "$(nproc)" >>"$work/log" 2>&1 || { cat "$work/log"; exit 1; }

passed=0 failed=0
for block in "${blocks[@]}"; do
  name=$(basename "$block" .cpp)
  mkdir "$work/$name"
  begin=$SECONDS
  if (cd "$work/$name" && timeout 300 "$work/build/$name" </dev/null >"$work/output" 2>&1); then
    passed=$((passed + 1)) outcome=passed
  else
    failed=$((failed + 1)) outcome="FAILED (exit $?)"
  fi
  echo "${name#block_}: $outcome, $((SECONDS - begin)) s"
  tail -n 20 "$work/output" | sed 's/^/    /'
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
