// The user's own header, which is called as one of weft's is.
#pragma once

struct OwnLayer {
  int width = 3;
};
