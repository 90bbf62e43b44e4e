// Likewise: what weft's headers include under this name is weft's.
#pragma once

inline int own_error() { return 5; }
