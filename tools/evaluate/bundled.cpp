// Stand-ins for benchmarks whose files are not there, written for weft.
#include "tools/evaluate/benchmarks.h"

namespace weft {

std::string_view bundled_text() {
  return "The loom stands by the window of the mill. Threads of the warp run from back to front, hundreds of them, and the "
         "weft is "
         "the thread that is woven through the warp. A weaver throws the shuttle from one side to the other, and the reed "
         "beats the "
         "new thread against the cloth.\n"
         "In the morning the river is high and the wheel turns fast. Its shaft drives a belt, the belt drives the looms, and "
         "the "
         "whole floor shakes. When the river is low, in the heat of the summer, the looms stand still and the weavers mend "
         "what is "
         "torn. Then the mill is quiet, and one can hear the water again.\n"
         "A pattern is written on paper as rows of squares. A black square says that the warp lies above the weft, a white one "
         "that "
         "it lies below. For a plain cloth black and white change from thread to thread. For a twill each row is the row "
         "before it, "
         "moved by one, and lines run across the cloth. Cards with holes once told the loom which threads to lift; a card for "
         "every "
         "row, sewn together into a long chain. Whoever punched the cards had to think of every row before the first was "
         "woven.\n"
         "The old weaver counts while she works. She says that a mistake in the first row is seen in all the rows after it, "
         "and a "
         "mistake in the last is seen by nobody but her. In the evening she cuts the cloth from the loom, folds it, and writes "
         "the "
         "number of the pattern on a slip of paper, so that the next cloth will be like this one.\n";
}

std::vector<SummaryTask> bundled_summaries() {
  return {
      {"The town council decided on Monday to close the bridge over the mill stream for repairs. Engineers had found cracks in "
       "two "
       "of its piers. The work begins in April and will take eleven weeks. Until then lorries may not cross, and buses will go "
       "by way of the station. The repairs cost about two million, half of which the state will pay.",
       "The bridge over the mill stream closes in April for eleven weeks of repairs. Cracks were found in two piers."},
      {"A library in the north has lent a book that was returned ninety years late. A woman found it in her grandmother's "
       "attic, "
       "a handbook of weaving with notes in the margins, and brought it back in person. The librarian did not ask for a fine. "
       "The book is now shown beside the entrance, open at a page where somebody had drawn a pattern.",
       "A book on weaving was returned to a library ninety years late. There was no fine, and it is now on show."},
      {"The storm on Saturday took the roof off the school's gymnasium, but nobody was hurt. Lessons go on in the hall of the "
       "fire brigade. The head of the school said that pupils had carried the chairs there themselves. A new roof will be "
       "built "
       "in the summer holidays.",
       "A storm took the roof off the gymnasium and nobody was hurt. Lessons go on in the fire brigade's hall."}};
}

std::vector<QuestionTask> bundled_questions() {
  return {{"Anna Brook: Anna Brook is a weaver who was born in Lindow.\nLindow: Lindow is a town on the river Ash.\n",
           "On which river is the town where Anna Brook was born?", "the Ash"},
          {"The Red Mill: The Red Mill is a novel by Peter Hale.\nPeter Hale: Peter Hale was a writer who died in 1911.\n",
           "When did the author of The Red Mill die?", "1911"},
          {"Mount Corr: Mount Corr is 2,310 metres high.\nMount Tavel: Mount Tavel is 1,980 metres high.\n",
           "Is Mount Corr higher than Mount Tavel?", "yes"},
          {"Ash Valley Line: The Ash Valley Line is a railway from Lindow to Port Ellis.\nPort Ellis: Port Ellis has 40,000 "
           "people.\n",
           "How many people live where the Ash Valley Line ends?", "40,000"}};
}

std::vector<ProgramTask> bundled_programs() {
  return {
      {"weft/0", "def add(a, b):\n    \"\"\"Return the sum of a and b.\"\"\"\n",
       "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(-5, 5) == 0\n", "add"},
      {"weft/1", "def largest(values):\n    \"\"\"Return the largest of a non-empty list of numbers.\"\"\"\n",
       "def check(candidate):\n    assert candidate([3]) == 3\n    assert candidate([1, 9, 2]) == 9\n    assert candidate([-4, "
       "-7]) == "
       "-4\n",
       "largest"},
      {"weft/2", "def is_palindrome(text):\n    \"\"\"Tell whether text reads the same backwards.\"\"\"\n",
       "def check(candidate):\n    assert candidate('') is True\n    assert candidate('level') is True\n    assert "
       "candidate('loom') is False\n",
       "is_palindrome"},
      {"weft/3", "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number; fibonacci(0) is 0, fibonacci(1) is 1.\"\"\"\n",
       "def check(candidate):\n    assert [candidate(n) for n in range(8)] == [0, 1, 1, 2, 3, 5, 8, 13]\n", "fibonacci"},
      {"weft/4", "def vowels(text):\n    \"\"\"Count the vowels a, e, i, o, u in text, of either case.\"\"\"\n",
       "def check(candidate):\n    assert candidate('Weft and warp') == 3\n    assert candidate('AEIOU xyz') == 5\n",
       "vowels"}};
}

}  // namespace weft
