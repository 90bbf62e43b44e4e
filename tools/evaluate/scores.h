// How good a made text is, by the definitions of the benchmarks that use them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace weft {

// ---- summaries: ROUGE (Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004)
// -----------------------------------

struct Overlap {
  double precision = 0, recall = 0, f1 = 0;  // shares of the made text, of the reference; 2 p r / (p + r), 0 if both are
};

// Lower-case letters and digits in a row are a word, as in the package rouge_score, without stemming; characters beyond ASCII
// are kept in words, which that package drops.
std::vector<std::string> rouge_words(std::string_view text);
// n-grams in common, each as often as both have it, out of all that each has.
Overlap rouge_n(std::string_view made, std::string_view reference, int n);
// The longest common subsequence of words, not necessarily neighbours, out of the words of each.
Overlap rouge_l(std::string_view made, std::string_view reference);

// ---- answers: SQuAD (arXiv:1606.05250) and HotpotQA (arXiv:1809.09600)
// ---------------------------------------------------------

// Lower case, without ASCII punctuation, without the words a, an, the, one space between words.
std::string normalised_answer(std::string_view text);
bool exact_match(std::string_view made, std::string_view reference);  // of normalised answers
// Of the words of normalised answers, each as often as both have it; two empty ones agree.
Overlap answer_overlap(std::string_view made, std::string_view reference);
// The same, but yes, no and noanswer agree with themselves alone, as HotpotQA counts.
Overlap hotpot_overlap(std::string_view made, std::string_view reference);

// ---- programs: pass@k (arXiv:2107.03374, equation 1)
// -------------------------------------------------------------------------

// Of n programs c pass: the chance that one of k drawn from them does, 1 - C(n - c, k) / C(n, k). Errors (ErrorKind::usage):
// not 0 <= c <= n, 1 <= k <= n.
double pass_at_k(std::int64_t n, std::int64_t c, std::int64_t k);

}  // namespace weft
