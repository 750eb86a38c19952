// A whole port in C++17, without libraries, written from spec/ alone; cpp_port.py beside it compiles and calls it.
//
// Parameters are float32 and x is float32 or float64; every number is widened to double as it is read, and a result is
// rounded once, where it is written (MIX-10). Double is what SINK-5 asks for from nine streams on. Arrays are row by
// row. There is no global state, so any number of threads may call at once (BACK-3). A function of the border returns
// nullptr, or what is wrong in words. Names: spec/10-notation.md. Clauses: BACK-1, BACK-3. Source: ours.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <limits>
#include <new>
#include <numeric>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// A result beyond the range of float32 is an infinity, and NaN spreads.
static_assert(std::numeric_limits<float>::is_iec559 && std::numeric_limits<double>::is_iec559);

namespace {

struct Refusal {
    const char* reason;
};

void demand(bool condition, const char* otherwise) {
    if (!condition) throw Refusal{otherwise};
}

using Vector = std::vector<double>;

// A row or a column of a matrix: count numbers, step apart.
struct Line {
    double* first;
    std::size_t step, count;
    double& operator[](std::size_t i) const { return first[i * step]; }
};

struct Matrix {
    std::size_t rows, columns;
    Vector values;
    Matrix(std::size_t rows, std::size_t columns) : rows(rows), columns(columns), values(rows * columns) {}
    double& operator()(std::size_t i, std::size_t j) { return values[i * columns + j]; }
    double operator()(std::size_t i, std::size_t j) const { return values[i * columns + j]; }
    Line row(std::size_t i) { return {&values[i * columns], 1, columns}; }
    Line column(std::size_t j) { return {&values[j], columns, rows}; }
    Line line(bool is_row, std::size_t i) { return is_row ? row(i) : column(i); }
};

template <class Left, class Right>
double dot(const Left* left, const Right* right, std::size_t count) {
    double total = 0;
    for (std::size_t i = 0; i < count; ++i) total += double(left[i]) * double(right[i]);
    return total;
}

bool all_finite(const float* values, std::size_t count) {
    return std::all_of(values, values + count, [](float value) { return std::isfinite(value); });
}

// The Sinkhorn projection (spec/30-sinkhorn-projection.md) -----------------------------------------------------------

double largest(const Line& line) {
    double top = line[0];
    for (std::size_t i = 1; i < line.count; ++i) top = std::max(top, line[i]);
    return top;
}

// SINK-3: first the maximum, then the logarithm; subtracted as one they would lose decimals.
void log_softmax(const Line& line) {
    const double top = largest(line);
    double sum = 0;
    for (std::size_t i = 0; i < line.count; ++i) sum += std::exp(line[i] -= top);
    const double log_sum = std::log(sum);
    for (std::size_t i = 0; i < line.count; ++i) line[i] -= log_sum;
}

void softmax(const Line& line) {
    const double top = largest(line);
    double sum = 0;
    for (std::size_t i = 0; i < line.count; ++i) sum += line[i] = std::exp(line[i] - top);
    for (std::size_t i = 0; i < line.count; ++i) line[i] /= sum;
}

struct Projection {
    std::vector<Matrix> trace;  // the log-matrix after every half step but the last, for the gradient alone
    Matrix plain;               // P
    Vector row_sums;            // rho
    std::size_t fullest;        // the first row with rho = m
    Matrix mixing;              // M
};

Projection project(const float* logits, std::size_t n, std::int64_t iterations, bool keep_trace) {
    demand(all_finite(logits, n * n), "mix_logits holds NaN or an infinity");  // SINK-9
    Projection result{{}, Matrix(n, n), Vector(n), 0, Matrix(n, n)};
    Matrix& matrix = result.plain;
    const double top = *std::max_element(logits, logits + n * n);
    std::transform(logits, logits + n * n, matrix.values.begin(), [top](float value) { return value - top; });
    for (std::int64_t k = 0; k < iterations; ++k) {  // SINK-3: rows, columns, exactly K times
        for (const bool is_row : {true, false}) {
            const bool is_last = k == iterations - 1 && !is_row;
            for (std::size_t i = 0; i < n; ++i)
                is_last ? softmax(matrix.column(i)) : log_softmax(matrix.line(is_row, i));
            if (keep_trace && !is_last) result.trace.push_back(matrix);
        }
    }
    for (std::size_t i = 0; i < n; ++i) {
        const double* row = &matrix.values[i * n];
        result.row_sums[i] = std::accumulate(row, row + n, 0.0);
        if (result.row_sums[i] > result.row_sums[result.fullest]) result.fullest = i;
    }
    const double m = result.row_sums[result.fullest];
    for (std::size_t i = 0; i < n; ++i)  // SINK-4: shrink until no row exceeds 1, then fill every row up evenly
        for (std::size_t j = 0; j < n; ++j)
            result.mixing(i, j) = matrix(i, j) / m + (1 - result.row_sums[i] / m) / double(n);
    return result;
}

// dL/dM -> dL/dS, by the formulas of project() from the last to the first (spec/45-gradients.md).
Matrix project_vjp(Projection& forward, Matrix grad) {
    const Matrix& plain = forward.plain;
    const std::size_t n = plain.rows;
    const double m = forward.row_sums[forward.fullest];
    Vector added(n);
    double grad_m = 0;
    for (std::size_t i = 0; i < n; ++i) {
        const double* upstream = &grad.values[i * n];
        const double total = std::accumulate(upstream, upstream + n, 0.0);
        added[i] = -total / (double(n) * m);
        grad_m -= (dot(upstream, &plain.values[i * n], n) - forward.row_sums[i] * total / double(n)) / (m * m);
    }
    added[forward.fullest] += grad_m;  // GRAD-2: of equal row sums the first receives all
    for (std::size_t i = 0; i < n; ++i)
        for (std::size_t j = 0; j < n; ++j) grad(i, j) = grad(i, j) / m + added[i];
    for (std::size_t j = 0; j < n; ++j) {  // the last column softmax
        double mean = 0;
        for (std::size_t i = 0; i < n; ++i) mean += plain(i, j) * grad(i, j);
        for (std::size_t i = 0; i < n; ++i) grad(i, j) = plain(i, j) * (grad(i, j) - mean);
    }
    for (std::size_t step = forward.trace.size(); step-- > 0;) {  // GRAD-1: every half step by its own matrix
        for (std::size_t i = 0; i < n; ++i) {
            const Line log_matrix = forward.trace[step].line(step % 2 == 0, i), line = grad.line(step % 2 == 0, i);
            double total = 0;
            for (std::size_t j = 0; j < n; ++j) total += line[j];
            for (std::size_t j = 0; j < n; ++j) line[j] -= std::exp(log_matrix[j]) * total;
        }
    }
    return grad;  // GRAD-3: the shift needs no term
}

// The adapter (spec/40-residual-mixing.md) ----------------------------------------------------------------------------

double sigmoid(double value) {
    return value >= 0 ? 1 / (1 + std::exp(-value)) : std::exp(value) / (1 + std::exp(value));
}

Matrix product(const Matrix& left, const Matrix& right) {
    Matrix result(left.rows, right.columns);
    for (std::size_t i = 0; i < left.rows; ++i)
        for (std::size_t k = 0; k < left.columns; ++k)
            for (std::size_t j = 0; j < right.columns; ++j) result(i, j) += left(i, k) * right(k, j);
    return result;
}

Matrix transposed(const Matrix& matrix) {
    Matrix result(matrix.columns, matrix.rows);
    for (std::size_t i = 0; i < matrix.rows; ++i)
        for (std::size_t j = 0; j < matrix.columns; ++j) result(j, i) = matrix(i, j);
    return result;
}

// What one layer's parameters are, and all that follows from them.
struct Layer {
    std::size_t n, r, d, width;  // width = n r, the rows of A
    const float* basis;
    Projection projection;
    Matrix unit, fourth;  // N = A A^T / tau and its fourth power
    double eighth, kappa, gate, closed, alpha;

    Layer(const float* logits, float gate_logit, const float* basis, std::array<std::size_t, 3> sizes,
          std::int64_t iterations, bool keep_trace)
        : n(sizes[0]), r(sizes[1]), d(sizes[2]), width(n * r), basis(basis),
          projection(project(logits, n, iterations, keep_trace)), unit(width, width), fourth(width, width) {
        demand(std::isfinite(gate_logit), "gate_logit is not finite");  // MIX-11
        demand(all_finite(basis, width * d), "basis holds NaN or an infinity");
        double tau = 0;
        for (std::size_t i = 0; i < width; ++i) {
            for (std::size_t j = 0; j <= i; ++j) unit(i, j) = unit(j, i) = dot(direction(i), direction(j), d);
            tau += unit(i, i);
        }
        demand(tau > 0, "basis is zero");  // MIX-6
        for (double& value : unit.values) value /= tau;  // before it is squared, so that nothing leaves the range
        const Matrix second = product(unit, unit);
        fourth = product(second, second);
        eighth = dot(fourth.values.data(), fourth.values.data(), width * width);  // of a symmetric matrix: its trace
        kappa = tau * std::pow(eighth, 0.125);
        gate = sigmoid(gate_logit);
        closed = sigmoid(-double(gate_logit));  // 1 - gate would lose its digits where the gate is open
        alpha = gate / kappa;                   // MIX-5
    }

    const float* direction(std::size_t row) const { return basis + row * d; }

    template <class Real>
    Vector read(const Real* token) const {  // MIX-2: z = A x
        Vector z(width);
        for (std::size_t row = 0; row < width; ++row) z[row] = dot(direction(row), token, d);
        return z;
    }

    Vector change(const Vector& z, const Matrix& mixing) const {  // MIX-3: sum_j M_ij z_j - z_i
        Vector moved(width);
        for (std::size_t i = 0; i < n; ++i)
            for (std::size_t k = 0; k < r; ++k) {
                double total = 0;
                for (std::size_t j = 0; j < n; ++j) total += mixing(i, j) * z[j * r + k];
                moved[i * r + k] = total - z[i * r + k];
            }
        return moved;
    }

    template <class Real>
    void write(const Real* token, const Vector& moved, Real* result) const {  // MIX-2: x + alpha A^T (moved)
        Vector sum(d);
        for (std::size_t row = 0; row < width; ++row)
            for (std::size_t k = 0; k < d; ++k) sum[k] += direction(row)[k] * moved[row];
        for (std::size_t k = 0; k < d; ++k) result[k] = Real(double(token[k]) + alpha * sum[k]);
    }
};

template <class Real>
void adapter_forward(const Layer& layer, const Real* x, std::size_t tokens, Real* y) {
    for (std::size_t t = 0; t < tokens; ++t, x += layer.d, y += layer.d)
        layer.write(x, layer.change(layer.read(x), layer.projection.mixing), y);
}

// The cotangents of x, mix_logits, gate_logit and basis (spec/45-gradients.md).
template <class Real>
void adapter_vjp(Layer& layer, const Real* x, const Real* upstream, std::size_t tokens, Real* grad_x,
                 float* grad_logits, float* grad_gate, float* grad_basis) {
    const auto [n, r, d, width] = std::array{layer.n, layer.r, layer.d, layer.width};
    const Matrix& mixing = layer.projection.mixing;
    const Matrix back_mixing = transposed(mixing);
    Matrix grad_mixing(n, n), grad_rows(width, d);
    double grad_alpha = 0;
    for (std::size_t t = 0; t < tokens; ++t, x += d, upstream += d, grad_x += d) {  // GRAD-7: sums over tokens
        const Vector z = layer.read(x), w = layer.read(upstream);
        const Vector moved = layer.change(z, mixing), moved_back = layer.change(w, back_mixing);
        layer.write(upstream, moved_back, grad_x);  // GRAD-4
        grad_alpha += dot(w.data(), moved.data(), width);
        for (std::size_t i = 0; i < n; ++i)
            for (std::size_t j = 0; j < n; ++j) grad_mixing(i, j) += dot(&w[i * r], &z[j * r], r);
        for (std::size_t row = 0; row < width; ++row)  // GRAD-5: A writes D z, and has read x
            for (std::size_t k = 0; k < d; ++k) grad_rows(row, k) += moved[row] * upstream[k] + moved_back[row] * x[k];
    }
    for (double& value : grad_mixing.values) value *= layer.alpha;
    const Matrix grad = project_vjp(layer.projection, std::move(grad_mixing));
    std::copy(grad.values.begin(), grad.values.end(), grad_logits);
    *grad_gate = float(grad_alpha * layer.gate * layer.closed / layer.kappa);  // GRAD-6
    // GRAD-6: A also sets kappa. With N = A A^T / tau its gradient is 2 (trace N^8)^(1/8) N^7 A / trace N^8.
    const double grad_kappa = -grad_alpha * layer.gate / (layer.kappa * layer.kappa);
    const double factor = 2 * grad_kappa * std::pow(layer.eighth, 0.125) / layer.eighth;
    const Matrix third = product(product(layer.unit, layer.unit), layer.unit);
    const Matrix seventh = product(layer.fourth, third);
    for (std::size_t row = 0; row < width; ++row) {
        Vector through_kappa(d);
        for (std::size_t other = 0; other < width; ++other)
            for (std::size_t k = 0; k < d; ++k) through_kappa[k] += seventh(row, other) * layer.direction(other)[k];
        for (std::size_t k = 0; k < d; ++k)
            grad_basis[row * d + k] = float(layer.alpha * grad_rows(row, k) + factor * through_kappa[k]);
    }
}

// JSON, as far as a state file needs it: numbers stay text, and the depth is limited ----------------------------------

struct Json {
    enum class Kind { Other, Number, String, Array, Object } kind = Kind::Other;  // Other: true, false, null
    std::string text;                                                           // of a string or a number
    std::vector<Json> items;                                                    // of an array or an object
    std::vector<std::string> keys;                                              // of an object, one for each item

    const Json& operator[](std::string_view key) const {
        const auto found = std::find(keys.begin(), keys.end(), key);
        demand(kind == Kind::Object && found != keys.end(), "a key of the header or of config is missing");
        return items[std::size_t(found - keys.begin())];
    }

    bool has(std::string_view key) const { return std::find(keys.begin(), keys.end(), key) != keys.end(); }

    const std::string& string() const {
        demand(kind == Kind::String, "something is not text that must be");
        return text;
    }

    std::uint64_t size() const {  // an integer from 0 to 2^63 - 1, written without fraction, exponent or sign
        demand(kind == Kind::Number && text.size() <= 19, "a number that is no size");
        std::uint64_t value = 0;
        for (const char digit : text) {
            demand(digit >= '0' && digit <= '9', "a number that is no size");
            value = 10 * value + std::uint64_t(digit - '0');
        }
        demand(value >> 63 == 0, "a number that is no size");
        return value;
    }
};

class JsonReader {
public:
    explicit JsonReader(std::string_view text) : rest(text) {}

    Json document() {
        Json value = read(0);
        skip_space();
        demand(rest.empty(), "text behind the end of the JSON");
        return value;
    }

private:
    std::string_view rest;

    char next() {
        demand(!rest.empty(), "the JSON is cut off");
        const char first = rest.front();
        rest.remove_prefix(1);
        return first;
    }

    bool take(std::string_view word) {
        const bool found = rest.substr(0, word.size()) == word;
        if (found) rest.remove_prefix(word.size());
        return found;
    }

    void skip_space() { rest.remove_prefix(std::min(rest.find_first_not_of(" \t\r\n"), rest.size())); }

    Json read(int depth) {
        demand(depth < 32, "the JSON is nested too deeply");
        skip_space();
        Json value;
        if (take("{") || take("[")) {
            const bool is_object = *(rest.data() - 1) == '{';
            const char* const closing = is_object ? "}" : "]";
            value.kind = is_object ? Json::Kind::Object : Json::Kind::Array;
            for (skip_space(); !take(closing); skip_space()) {
                demand(value.items.empty() || take(","), "no comma between two values of the JSON");
                if (is_object) {
                    skip_space();
                    demand(take("\""), "a key of the JSON is no text");
                    value.keys.push_back(string());
                    skip_space();
                    demand(take(":"), "no colon behind a key of the JSON");
                }
                value.items.push_back(read(depth + 1));
            }
            std::vector<std::string> sorted = value.keys;
            std::sort(sorted.begin(), sorted.end());
            demand(std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end(), "a key of the JSON is doubled");
        } else if (take("\"")) {
            value.kind = Json::Kind::String;
            value.text = string();
        } else if (!take("true") && !take("false") && !take("null")) {
            value.kind = Json::Kind::Number;
            value.text = number();
        }
        return value;
    }

    std::string number() {
        const std::string_view start = rest;
        const auto digits = [this] {
            demand(!rest.empty() && rest.front() >= '0' && rest.front() <= '9', "no JSON");
            rest.remove_prefix(std::min(rest.find_first_not_of("0123456789"), rest.size()));
        };
        take("-");
        if (!take("0")) digits();
        if (take(".")) digits();
        if (take("e") || take("E")) {
            if (!take("+")) take("-");
            digits();
        }
        return std::string(start.substr(0, start.size() - rest.size()));
    }

    std::string string() {
        std::string text;
        for (char one = next(); one != '"'; one = next()) {
            const auto byte = static_cast<unsigned char>(one);
            demand(byte >= 0x20, "a control character within text");
            if (one == '\\')
                append(text, escaped());
            else if (byte < 0x80)
                text += one;
            else
                append(text, sequence(byte));
        }
        return text;
    }

    // The character of a UTF-8 sequence of two to four bytes.
    std::uint32_t sequence(unsigned char first) {
        const int more = first >= 0xF0 ? 3 : first >= 0xE0 ? 2 : 1;
        std::uint32_t code = first & (0x3Fu >> more);
        for (int i = 0; i < more; ++i) {
            const auto byte = static_cast<unsigned char>(next());
            demand((byte & 0xC0) == 0x80, "no UTF-8");
            code = code << 6 | (byte & 0x3Fu);
        }
        constexpr std::uint32_t smallest[] = {0, 0x80, 0x800, 0x10000};
        demand(first >= 0xC2 && first < 0xF8 && code >= smallest[more], "no UTF-8");
        return code;
    }

    std::uint32_t escaped() {
        constexpr std::string_view names = "\"\\/bfnrt", meanings = "\"\\/\b\f\n\r\t";
        const char name = next();
        if (name != 'u') {
            const std::size_t place = names.find(name);
            demand(place != names.npos, "an escape that JSON does not have");
            return std::uint32_t(meanings[place]);
        }
        const std::uint32_t code = four_digits();
        if (code < 0xD800 || code > 0xDBFF) return code;
        demand(take("\\u"), "half a surrogate pair");
        const std::uint32_t low = four_digits();
        demand(low >= 0xDC00 && low <= 0xDFFF, "half a surrogate pair");
        return 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }

    std::uint32_t four_digits() {
        constexpr std::string_view digits = "0123456789abcdef";
        std::uint32_t code = 0;
        for (int i = 0; i < 4; ++i) {
            const char digit = next();
            const std::size_t value = digits.find(digit >= 'A' && digit <= 'F' ? char(digit - 'A' + 'a') : digit);
            demand(value != digits.npos, "no hexadecimal digit");
            code = code << 4 | std::uint32_t(value);
        }
        return code;
    }

    static void append(std::string& text, std::uint32_t code) {
        demand(code <= 0x10FFFF && (code < 0xD800 || code > 0xDFFF), "half a surrogate pair, or no character");
        const int more = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
        constexpr std::uint32_t lead[] = {0, 0xC0, 0xE0, 0xF0};
        text += char(lead[more] | code >> 6 * more);
        for (int i = more; i-- > 0;) text += char(0x80u | (code >> 6 * i & 0x3Fu));
    }
};

// SHA-256 (FIPS 180-4) ------------------------------------------------------------------------------------------------

class Sha256 {
public:
    void update(const std::uint8_t* bytes, std::size_t count) {
        for (std::size_t i = 0; i < count; ++i) {
            block[length++ % 64] = bytes[i];
            if (length % 64 == 0) compress();
        }
    }

    std::string hexadecimal() {
        const std::uint64_t bits = 8 * length;
        const std::uint8_t one = 0x80, zero = 0;
        update(&one, 1);
        while (length % 64 != 56) update(&zero, 1);
        for (int shift = 56; shift >= 0; shift -= 8) {
            const auto byte = std::uint8_t(bits >> shift);
            update(&byte, 1);
        }
        std::string text;
        for (const std::uint32_t word : state)
            for (int shift = 28; shift >= 0; shift -= 4) text += "0123456789abcdef"[word >> shift & 15u];
        return text;
    }

private:
    // The first 32 bits of the fractional parts of the square roots of the first 8 primes, and of the cube roots of 64.
    std::array<std::uint32_t, 8> state{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                       0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    static constexpr std::array<std::uint32_t, 64> constants{
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
    std::array<std::uint8_t, 64> block{};
    std::uint64_t length = 0;

    static std::uint32_t turned(std::uint32_t word, int by) { return word >> by | word << (32 - by); }

    void compress() {
        std::array<std::uint32_t, 64> w{};
        for (int t = 0; t < 64; ++t) {
            if (t < 16) {
                for (int i = 0; i < 4; ++i) w[t] = w[t] << 8 | block[4 * t + i];
                continue;
            }
            const std::uint32_t a = w[t - 15], b = w[t - 2];
            w[t] = w[t - 16] + (turned(a, 7) ^ turned(a, 18) ^ a >> 3) + w[t - 7] +
                   (turned(b, 17) ^ turned(b, 19) ^ b >> 10);
        }
        auto [a, b, c, d, e, f, g, h] = state;
        for (int t = 0; t < 64; ++t) {
            const std::uint32_t first = h + (turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)) + ((e & f) ^ (~e & g)) +
                                        constants[t] + w[t];
            const std::uint32_t second =
                (turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
            h = g, g = f, f = e, e = d + first, d = c, c = b, b = a, a = first + second;
        }
        const std::array<std::uint32_t, 8> worked{a, b, c, d, e, f, g, h};
        for (int i = 0; i < 8; ++i) state[i] += worked[i];
    }
};

// The state file (spec/60-state-file.md) ------------------------------------------------------------------------------

// Where the three arrays begin in the file, and the sizes.
struct State {
    std::uint64_t layers, n, r, d, iterations;
    std::array<std::uint64_t, 3> starts;
};

// STATE-4: a file is not trusted. 4 times the product of a shape, which fits into limit bytes or is refused.
std::uint64_t bytes_of(const std::vector<std::uint64_t>& shape, std::uint64_t limit) {
    std::uint64_t total = 4;
    for (const std::uint64_t size : shape) {
        demand(size >= 1 && size <= limit / total, "an array would be larger than the file");
        total *= size;
    }
    return total;
}

// STATE-7: MAJOR.MINOR of at most nine digits each. STATE-2: of them this port knows the major number 0.
bool is_known(std::string_view version) {
    const auto is_number = [](std::string_view part) {
        const bool digits = !part.empty() && part.find_first_not_of("0123456789") == part.npos;
        return digits && part.size() <= 9 && (part == "0" || part.front() != '0');
    };
    const std::size_t point = std::min(version.find('.'), version.size());
    return version.substr(0, point) == "0" && is_number(version.substr(std::min(point + 1, version.size())));
}

State load_state(const std::uint8_t* data, std::uint64_t size) {
    demand(size >= 8, "the file is shorter than the length of its header");
    std::uint64_t length = 0;  // STATE-1: eight bytes, little-endian
    for (int i = 8; i-- > 0;) length = length << 8 | data[i];
    demand(length <= size - 8, "the header is longer than the file");
    const std::string_view text(reinterpret_cast<const char*>(data) + 8, length);
    demand(!text.empty() && text.front() == '{', "the header is no JSON object");
    const Json header = JsonReader(text).document();
    const Json& metadata = header["__metadata__"];
    demand(metadata.kind == Json::Kind::Object, "the metadata is no JSON object");
    for (const Json& value : metadata.items) value.string();
    demand(metadata["format"].string() == "crma", "format is not crma");
    demand(is_known(metadata["spec_version"].string()), "spec_version is newer than this port, or none");  // STATE-2
    const std::string& config_text = metadata["config"].string();
    const Json config = JsonReader(config_text).document();
    demand(config.kind == Json::Kind::Object && config.keys.size() == 5, "config is not of the five sizes");  // STATE-8
    State state{config["layers"].size(), config["streams"].size(),    config["rank"].size(),
                config["hidden_size"].size(), config["iterations"].size(), {}};
    const auto& [layers, n, r, d, iterations, starts] = state;
    demand(n >= 1 && r >= 1 && n <= d / r && iterations >= 1, "sizes in config that no adapter has");
    const std::array<std::pair<const char*, std::vector<std::uint64_t>>, 3> arrays{
        {{"mix_logits", {layers, n, n}}, {"gate_logits", {layers}}, {"bases", {layers, n, r, d}}}};
    demand(header.keys.size() == 4, "other arrays than those of a state");
    const std::uint64_t body = size - 8 - length;
    const std::uint8_t* const start = data + 8 + length;
    std::vector<std::pair<std::uint64_t, std::uint64_t>> spans;
    Sha256 checksum;
    checksum.update(reinterpret_cast<const std::uint8_t*>(config_text.data()), config_text.size());
    for (std::size_t which = 0; which < 3; ++which) {  // STATE-5: by name, wherever they lie
        const auto& [name, shape] = arrays[which];
        const Json &entry = header[name], &stored = entry["shape"], &offsets = entry["data_offsets"];
        demand(entry["dtype"].string() == "F32", "an array that is not F32");
        demand(stored.kind == Json::Kind::Array && stored.items.size() == shape.size(), "a shape that config denies");
        for (std::size_t axis = 0; axis < shape.size(); ++axis)
            demand(stored.items[axis].size() == shape[axis], "a shape that config denies");
        demand(offsets.kind == Json::Kind::Array && offsets.items.size() == 2, "data_offsets are no two integers");
        const std::uint64_t begin = offsets.items[0].size(), end = offsets.items[1].size();
        demand(begin <= end && end <= body, "an array lies outside the file");
        demand(end - begin == bytes_of(shape, body), "data_offsets disagree with the shape");
        for (std::uint64_t i = begin; i < end; i += 4)  // an exponent of ones is NaN or an infinity
            demand((start[i + 3] & 0x7F) != 0x7F || (start[i + 2] & 0x80) == 0, "an array holds NaN or an infinity");
        checksum.update(start + begin, end - begin);
        spans.emplace_back(begin, end);
        state.starts[which] = 8 + length + begin;
    }
    std::sort(spans.begin(), spans.end());
    std::uint64_t covered = 0;
    for (const auto& [begin, end] : spans) {
        demand(begin == covered, "arrays overlap, or leave bytes between them");
        covered = end;
    }
    demand(covered == body, "there are bytes behind the arrays");
    if (metadata.has("content_sha256"))  // STATE-6
        demand(metadata["content_sha256"].string() == checksum.hexadecimal(), "content_sha256 is another one");
    return state;
}

template <class Work>
const char* reason_of(Work work) noexcept {
    try {
        work();
    } catch (const Refusal& refusal) {
        return refusal.reason;
    } catch (const std::bad_alloc&) {
        return "out of memory";
    } catch (const std::exception&) {  // a vector longer than any memory
        return "sizes beyond any memory";
    }
    return nullptr;
}

}  // namespace

// The border: what cpp_port.py calls. Shapes and K have been checked there (SINK-1, SINK-2, MIX-1). -------------------

extern "C" {

const char* crma_projection(const float* logits, std::size_t batch, std::size_t n, std::int64_t iterations,
                            const float* cotangent, float* result) {  // without a cotangent: M; with one: dL/dS
    return reason_of([=]() mutable {
        for (std::size_t b = 0; b < batch; ++b, logits += n * n, result += n * n) {
            Projection projection = project(logits, n, iterations, cotangent != nullptr);
            if (cotangent) {
                Matrix upstream(n, n);
                std::copy(cotangent, cotangent + n * n, upstream.values.begin());
                projection.mixing = project_vjp(projection, std::move(upstream));
                cotangent += n * n;
            }
            std::copy(projection.mixing.values.begin(), projection.mixing.values.end(), result);
        }
    });
}

// wide: x, y and cotangents of x are double; else float.
const char* crma_adapter_forward(bool wide, const void* x, std::size_t tokens, const float* logits, float gate_logit,
                                 const float* basis, const std::size_t* sizes, std::int64_t iterations, void* y) {
    return reason_of([=] {
        const Layer layer(logits, gate_logit, basis, {sizes[0], sizes[1], sizes[2]}, iterations, false);
        if (wide)
            adapter_forward(layer, static_cast<const double*>(x), tokens, static_cast<double*>(y));
        else
            adapter_forward(layer, static_cast<const float*>(x), tokens, static_cast<float*>(y));
    });
}

const char* crma_adapter_vjp(bool wide, const void* x, std::size_t tokens, const float* logits, float gate_logit,
                             const float* basis, const std::size_t* sizes, std::int64_t iterations,
                             const void* cotangent, void* grad_x, float* grad_logits, float* grad_gate,
                             float* grad_basis) {
    return reason_of([=] {
        Layer layer(logits, gate_logit, basis, {sizes[0], sizes[1], sizes[2]}, iterations, true);
        if (wide)
            adapter_vjp(layer, static_cast<const double*>(x), static_cast<const double*>(cotangent), tokens,
                        static_cast<double*>(grad_x), grad_logits, grad_gate, grad_basis);
        else
            adapter_vjp(layer, static_cast<const float*>(x), static_cast<const float*>(cotangent), tokens,
                        static_cast<float*>(grad_x), grad_logits, grad_gate, grad_basis);
    });
}

// sizes: layers, n, r, d, K. starts: the bytes of the file at which mix_logits, gate_logits and bases begin.
const char* crma_load_state(const std::uint8_t* data, std::uint64_t size, std::uint64_t* sizes, std::uint64_t* starts) {
    return reason_of([=] {
        const State state = load_state(data, size);
        const std::array<std::uint64_t, 5> values{state.layers, state.n, state.r, state.d, state.iterations};
        std::copy(values.begin(), values.end(), sizes);
        std::copy(state.starts.begin(), state.starts.end(), starts);
    });
}

}  // extern "C"
