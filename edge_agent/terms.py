"""The vocabulary: one row per vital sign, with the codes under which devices and receivers know it.

Source: IEEE 11073-10101 (MDC codes and reference identifiers), LOINC, UCUM, Philips Data Export manuals (MDIL codes).
The `evidence` letter says how sure the pair of code and reference identifier is: S = read in a public source,
K = general knowledge, to be verified before it is relied on. Plausibility bounds are engineering values.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["numeric", "waveform", "status"]


class Term(NamedTuple):
    """One metric: `vital` is the family a limit applies to, bounds are in the unit `ucum`."""

    name: str
    vital: str
    mdc_code: int
    refid: str
    loinc: str
    ucum: str
    unit_code: int
    unit_refid: str
    mdil: str
    plausible_min: float | None
    plausible_max: float | None
    evidence: str
    kind: Kind = "numeric"


# fmt: off
TERMS: tuple[Term, ...] = (
    Term("heart_rate", "heart_rate", 147842, "MDC_ECG_HEART_RATE", "8867-4", "/min",
         264864, "MDC_DIM_BEAT_PER_MIN", "0002-4182", 0.0, 350.0, "S", "numeric"),
    Term("pulse_rate", "pulse_rate", 149530, "MDC_PULS_OXIM_PULS_RATE", "8889-8", "/min",
         264864, "MDC_DIM_BEAT_PER_MIN", "0002-4822", 0.0, 350.0, "S", "numeric"),
    Term("nibp_pulse_rate", "pulse_rate", 149546, "MDC_PULS_RATE_NON_INV", "8867-4", "/min",
         264864, "MDC_DIM_BEAT_PER_MIN", "", 0.0, 350.0, "S", "numeric"),
    Term("abp_pulse_rate", "pulse_rate", 149522, "MDC_BLD_PULS_RATE_INV", "8867-4", "/min",
         264864, "MDC_DIM_BEAT_PER_MIN", "", 0.0, 350.0, "S", "numeric"),
    Term("pulse_rate_other", "pulse_rate", 149514, "MDC_PULS_RATE", "8867-4", "/min",
         264864, "MDC_DIM_BEAT_PER_MIN", "0002-480a", 0.0, 350.0, "S", "numeric"),
    Term("spo2", "spo2", 150456, "MDC_PULS_OXIM_SAT_O2", "59408-5", "%",
         262688, "MDC_DIM_PERCENT", "0002-4bb8", 0.0, 100.0, "S", "numeric"),
    Term("perfusion_index", "perfusion_index", 150488, "MDC_BLD_PERF_INDEX", "61006-3", "%",
         262688, "MDC_DIM_PERCENT", "0002-4bb0", 0.0, 100.0, "K", "numeric"),
    Term("resp_rate", "resp_rate", 151562, "MDC_RESP_RATE", "9279-1", "/min",
         264928, "MDC_DIM_RESP_PER_MIN", "0002-500a", 0.0, 150.0, "S", "numeric"),
    Term("resp_rate_impedance", "resp_rate", 151578, "MDC_TTHOR_RESP_RATE", "9279-1", "/min",
         264928, "MDC_DIM_RESP_PER_MIN", "", 0.0, 150.0, "S", "numeric"),
    Term("resp_rate_co2", "resp_rate", 151594, "MDC_CO2_RESP_RATE", "9279-1", "/min",
         264928, "MDC_DIM_RESP_PER_MIN", "", 0.0, 150.0, "K", "numeric"),
    Term("resp_rate_pleth", "resp_rate", 151658, "MDC_PULS_OXIM_PLETH_RESP_RATE", "9279-1", "/min",
         264928, "MDC_DIM_RESP_PER_MIN", "", 0.0, 150.0, "K", "numeric"),
    Term("nibp_sys", "nibp_sys", 150021, "MDC_PRESS_BLD_NONINV_SYS", "8480-6", "mm[Hg]",
         266016, "MDC_DIM_MMHG", "0002-4a05", -50.0, 400.0, "S", "numeric"),
    Term("nibp_dia", "nibp_dia", 150022, "MDC_PRESS_BLD_NONINV_DIA", "8462-4", "mm[Hg]",
         266016, "MDC_DIM_MMHG", "0002-4a06", -50.0, 400.0, "S", "numeric"),
    Term("nibp_mean", "nibp_mean", 150023, "MDC_PRESS_BLD_NONINV_MEAN", "8478-0", "mm[Hg]",
         266016, "MDC_DIM_MMHG", "0002-4a07", -50.0, 400.0, "S", "numeric"),
    Term("abp_sys", "abp_sys", 150037, "MDC_PRESS_BLD_ART_ABP_SYS", "76215-3", "mm[Hg]",
         266016, "MDC_DIM_MMHG", "0002-4a15", -50.0, 400.0, "S", "numeric"),
    Term("abp_dia", "abp_dia", 150038, "MDC_PRESS_BLD_ART_ABP_DIA", "76213-8", "mm[Hg]",
         266016, "MDC_DIM_MMHG", "0002-4a16", -50.0, 400.0, "S", "numeric"),
    Term("abp_mean", "abp_mean", 150039, "MDC_PRESS_BLD_ART_ABP_MEAN", "76214-6", "mm[Hg]",
         266016, "MDC_DIM_MMHG", "0002-4a17", -50.0, 400.0, "S", "numeric"),
    Term("art_sys", "abp_sys", 150033, "MDC_PRESS_BLD_ART_SYS", "", "mm[Hg]",
         266016, "MDC_DIM_MMHG", "0002-4a11", -50.0, 400.0, "S", "numeric"),
    Term("art_dia", "abp_dia", 150034, "MDC_PRESS_BLD_ART_DIA", "", "mm[Hg]",
         266016, "MDC_DIM_MMHG", "0002-4a12", -50.0, 400.0, "S", "numeric"),
    Term("art_mean", "abp_mean", 150035, "MDC_PRESS_BLD_ART_MEAN", "", "mm[Hg]",
         266016, "MDC_DIM_MMHG", "0002-4a13", -50.0, 400.0, "S", "numeric"),
    Term("cvp", "cvp", 150087, "MDC_PRESS_BLD_VEN_CENT_MEAN", "60985-9", "mm[Hg]",
         266016, "MDC_DIM_MMHG", "0002-4a47", -50.0, 400.0, "S", "numeric"),
    Term("pap_sys", "pap_sys", 150045, "MDC_PRESS_BLD_ART_PULM_SYS", "8440-0", "mm[Hg]",
         266016, "MDC_DIM_MMHG", "0002-4a1d", -50.0, 400.0, "S", "numeric"),
    Term("pap_dia", "pap_dia", 150046, "MDC_PRESS_BLD_ART_PULM_DIA", "8385-7", "mm[Hg]",
         266016, "MDC_DIM_MMHG", "0002-4a1e", -50.0, 400.0, "S", "numeric"),
    Term("pap_mean", "pap_mean", 150047, "MDC_PRESS_BLD_ART_PULM_MEAN", "8414-5", "mm[Hg]",
         266016, "MDC_DIM_MMHG", "0002-4a1f", -50.0, 400.0, "S", "numeric"),
    Term("icp", "icp", 153608, "MDC_PRESS_INTRA_CRAN", "60956-0", "mm[Hg]",
         266016, "MDC_DIM_MMHG", "0002-5808", -50.0, 400.0, "K", "numeric"),
    Term("temp", "temp", 150344, "MDC_TEMP", "8310-5", "Cel",
         268192, "MDC_DIM_DEGC", "0002-4b48", 15.0, 45.0, "S", "numeric"),
    Term("temp_core", "temp", 150368, "MDC_TEMP_CORE", "8329-5", "Cel",
         268192, "MDC_DIM_DEGC", "0002-4b60", 15.0, 45.0, "S", "numeric"),
    Term("temp_skin", "temp", 150388, "MDC_TEMP_SKIN", "60839-8", "Cel",
         268192, "MDC_DIM_DEGC", "0002-4b74", 15.0, 45.0, "K", "numeric"),
    Term("temp_axillary", "temp", 188496, "MDC_TEMP_AXIL", "8328-7", "Cel",
         268192, "MDC_DIM_DEGC", "", 15.0, 45.0, "K", "numeric"),
    Term("etco2", "etco2", 151728, "MDC_AWAY_CO2_ET", "19891-1", "mm[Hg]",
         266016, "MDC_DIM_MMHG", "0002-50b0", 0.0, 150.0, "S", "numeric"),
    Term("etco2_conc", "etco2_conc", 151708, "MDC_CONC_AWAY_CO2_ET", "19889-5", "%",
         262688, "MDC_DIM_PERCENT", "", 0.0, 20.0, "K", "numeric"),
    Term("ico2", "ico2", 151738, "MDC_AWAY_CO2_INSP_MIN", "", "mm[Hg]",
         266016, "MDC_DIM_MMHG", "0002-50ba", 0.0, 150.0, "S", "numeric"),
    Term("fio2", "fio2", 152196, "MDC_CONC_AWAY_O2_INSP", "3150-6", "%",
         262688, "MDC_DIM_PERCENT", "0002-5284", 0.0, 100.0, "S", "numeric"),
    Term("pvc_rate", "pvc_rate", 148066, "MDC_ECG_V_P_C_RATE", "", "/min",
         264864, "MDC_DIM_BEAT_PER_MIN", "0002-4261", 0.0, 350.0, "S", "numeric"),
    Term("st_i", "st_i", 131841, "MDC_ECG_AMPL_ST_I", "", "mm",
         263442, "MDC_DIM_MILLI_M", "0002-0301", -25.0, 25.0, "S", "numeric"),
    Term("cardiac_output", "cardiac_output", 150276, "MDC_OUTPUT_CARD", "8741-1", "L/min",
         0, "MDC_DIM_X_L_PER_MIN", "0002-4b04", 0.0, 30.0, "K", "numeric"),
    Term("weight", "weight", 188736, "MDC_MASS_BODY_ACTUAL", "29463-7", "kg",
         263875, "MDC_DIM_KILO_G", "", 0.0, 500.0, "S", "numeric"),
    Term("height", "height", 188740, "MDC_LEN_BODY_ACTUAL", "8302-2", "cm",
         263441, "MDC_DIM_CENTI_M", "", 0.0, 300.0, "S", "numeric"),
    Term("glucose", "glucose", 160184, "MDC_CONC_GLU_CAPILLARY_WHOLEBLOOD", "41653-7", "mg/dL",
         264274, "MDC_DIM_MILLI_G_PER_DL", "", 0.0, 2000.0, "K", "numeric"),
    Term("battery", "battery", 67996, "MDC_ATTR_VAL_BATT_CHARGE", "", "%",
         262688, "MDC_DIM_PERCENT", "", 0.0, 100.0, "K", "status"),
    Term("ecg_i", "ecg", 131329, "MDC_ECG_ELEC_POTL_I", "", "mV",
         266418, "MDC_DIM_MILLI_VOLT", "", -50.0, 50.0, "S", "waveform"),
    Term("ecg_ii", "ecg", 131330, "MDC_ECG_ELEC_POTL_II", "", "mV",
         266418, "MDC_DIM_MILLI_VOLT", "", -50.0, 50.0, "S", "waveform"),
    Term("ecg_iii", "ecg", 131389, "MDC_ECG_ELEC_POTL_III", "", "mV",
         266418, "MDC_DIM_MILLI_VOLT", "", -50.0, 50.0, "S", "waveform"),
    Term("pleth", "pleth", 150452, "MDC_PULS_OXIM_PLETH", "", "1",
         262656, "MDC_DIM_DIMLESS", "", None, None, "S", "waveform"),
    Term("resp_wave", "resp_wave", 151780, "MDC_IMPED_TTHOR", "", "Ohm",
         0, "MDC_DIM_X_OHM", "", None, None, "S", "waveform"),
    Term("co2_wave", "co2_wave", 151724, "MDC_AWAY_CO2", "", "mm[Hg]",
         266016, "MDC_DIM_MMHG", "", -10.0, 150.0, "S", "waveform"),
    Term("abp_wave", "abp_wave", 150036, "MDC_PRESS_BLD_ART_ABP", "", "mm[Hg]",
         266016, "MDC_DIM_MMHG", "", -50.0, 400.0, "S", "waveform"),
)
# fmt: on

# Codes that field devices send for a term although the nomenclature gives that number to another one, or to none.
# Cuff pressures: 150301.. is the cuff itself and 15001x the generic non-invasive row of older senders.
MDC_ALIASES: dict[int, str] = {
    150301: "nibp_sys",
    150302: "nibp_dia",
    150303: "nibp_mean",
    150017: "nibp_sys",
    150018: "nibp_dia",
    150019: "nibp_mean",
    149538: "pulse_rate",
    151570: "resp_rate_co2",
    150457: "pulse_rate",
    150458: "perfusion_index",
}
REFID_ALIASES: dict[str, str] = {
    "MDC_PRESS_CUFF_SYS": "nibp_sys",
    "MDC_PRESS_CUFF_DIA": "nibp_dia",
    "MDC_PRESS_CUFF_MEAN": "nibp_mean",
    "MDC_PULS_OXIM_PERF_INDEX": "perfusion_index",
    "MDC_PULS_OXIM_PERF_REL": "perfusion_index",
    "MDC_PLETH_PULS_RATE": "pulse_rate",
    "MDC_AWAY_RESP_RATE": "resp_rate_co2",
}
LOINC_ALIASES: dict[str, str] = {
    "2708-6": "spo2",
    "76534-7": "nibp_sys",
    "76535-4": "nibp_dia",
    "76536-2": "nibp_mean",
}
MDIL_ALIASES: dict[str, str] = {
    "0002-5000": "resp_rate",  # the wave's code, sent for the numeric by Efficia monitors
    "0002-4261": "pvc_rate",  # the count's code, sent for the rate
}

BY_NAME: dict[str, Term] = {term.name: term for term in TERMS}
BY_MDC: dict[int, Term] = {term.mdc_code: term for term in TERMS}
BY_REFID: dict[str, Term] = {term.refid: term for term in TERMS}
BY_MDIL: dict[str, Term] = {term.mdil: term for term in TERMS if term.mdil}
BY_LOINC: dict[str, Term] = {}
for _term in TERMS:  # the first row of a LOINC code owns it: later rows name a site or method the code does not tell
    if _term.loinc:
        BY_LOINC.setdefault(_term.loinc, _term)
BY_MDC.update({code: BY_NAME[name] for code, name in MDC_ALIASES.items() if code not in BY_MDC})
BY_REFID.update({refid: BY_NAME[name] for refid, name in REFID_ALIASES.items()})
BY_LOINC.update({code: BY_NAME[name] for code, name in LOINC_ALIASES.items()})
BY_MDIL.update({code: BY_NAME[name] for code, name in MDIL_ALIASES.items()})

VITALS: frozenset[str] = frozenset(term.vital for term in TERMS)

# Unit spellings seen on the wire, to UCUM. Keys are compared lower-case.
UNIT_NAMES: dict[str, str] = {
    "mmhg": "mm[Hg]",
    "mm[hg]": "mm[Hg]",
    "kpa": "kPa",
    "cmh2o": "cm[H2O]",
    "cm[h2o]": "cm[H2O]",
    "bpm": "/min",
    "/min": "/min",
    "{beats}/min": "/min",
    "{breaths}/min": "/min",
    "rpm": "/min",
    "1/min": "/min",
    "brpm": "/min",
    "beats/min": "/min",
    "breaths/min": "/min",
    "{beat}/min": "/min",
    "resp/min": "/min",
    "%": "%",
    "percent": "%",
    "{fraction}": "{fraction}",
    "c": "Cel",
    "cel": "Cel",
    "degc": "Cel",
    "°c": "Cel",
    "f": "[degF]",
    "[degf]": "[degF]",
    "degf": "[degF]",
    "°f": "[degF]",
    "k": "K",
    "mm": "mm",
    "cm": "cm",
    "m": "m",
    "in": "[in_i]",
    "[in_i]": "[in_i]",
    "kg": "kg",
    "g": "g",
    "lb": "[lb_av]",
    "[lb_av]": "[lb_av]",
    "mv": "mV",
    "uv": "uV",
    "v": "V",
    "l/min": "L/min",
    "mg/dl": "mg/dL",
    "mmol/l": "mmol/L",
    "ohm": "Ohm",
    "1": "1",
    "": "",
}
UNIT_CODES: dict[int, str] = {
    264864: "/min",
    264928: "/min",
    262688: "%",
    266016: "mm[Hg]",
    265987: "kPa",
    266048: "cm[H2O]",
    268192: "Cel",
    266560: "[degF]",
    263442: "mm",
    263441: "cm",
    263424: "m",
    263875: "kg",
    263872: "g",
    263904: "[lb_av]",
    263520: "[in_i]",
    266418: "mV",
    266419: "uV",
    262656: "1",
    264274: "mg/dL",
    264320: "s",
    264640: "Hz",
}
UNIT_REFIDS: dict[str, str] = {
    "MDC_DIM_BEAT_PER_MIN": "/min",
    "MDC_DIM_RESP_PER_MIN": "/min",
    "MDC_DIM_PERCENT": "%",
    "MDC_DIM_MMHG": "mm[Hg]",
    "MDC_DIM_KILO_PASCAL": "kPa",
    "MDC_DIM_CM_H2O": "cm[H2O]",
    "MDC_DIM_DEGC": "Cel",
    "MDC_DIM_FAHR": "[degF]",
    "MDC_DIM_KELVIN": "K",
    "MDC_DIM_MILLI_M": "mm",
    "MDC_DIM_CENTI_M": "cm",
    "MDC_DIM_X_M": "m",
    "MDC_DIM_KILO_G": "kg",
    "MDC_DIM_X_G": "g",
    "MDC_DIM_LB": "[lb_av]",
    "MDC_DIM_INCH": "[in_i]",
    "MDC_DIM_MILLI_VOLT": "mV",
    "MDC_DIM_MICRO_VOLT": "uV",
    "MDC_DIM_X_VOLT": "V",
    "MDC_DIM_DIMLESS": "1",
    "MDC_DIM_MILLI_G_PER_DL": "mg/dL",
    "MDC_DIM_MILLI_MOLE_PER_L": "mmol/L",
    "MDC_DIM_X_L_PER_MIN": "L/min",
    "MDC_DIM_X_OHM": "Ohm",
    "MDC_DIM_SEC": "s",
    "MDC_DIM_HZ": "Hz",
}
# (from, to): (factor, offset), value_to = value_from * factor + offset
_CONVERSIONS: dict[tuple[str, str], tuple[float, float]] = {
    ("kPa", "mm[Hg]"): (7.500617, 0.0),
    ("cm[H2O]", "mm[Hg]"): (0.7355592, 0.0),
    ("[degF]", "Cel"): (5 / 9, -160 / 9),
    ("K", "Cel"): (1.0, -273.15),
    ("cm", "mm"): (10.0, 0.0),
    ("m", "mm"): (1000.0, 0.0),
    ("m", "cm"): (100.0, 0.0),
    ("mm", "cm"): (0.1, 0.0),
    ("[in_i]", "cm"): (2.54, 0.0),
    ("g", "kg"): (0.001, 0.0),
    ("[lb_av]", "kg"): (0.45359237, 0.0),
    ("uV", "mV"): (0.001, 0.0),
    ("V", "mV"): (1000.0, 0.0),
    ("mmol/L", "mg/dL"): (18.0156, 0.0),  # glucose, the only concentration in the vocabulary
}


def conversion(unit_from: str, unit_to: str) -> tuple[float, float] | None:
    """Factor and offset that turn a value in UCUM unit `unit_from` into `unit_to`; None when they do not convert.

    A fraction is never taken for a percentage: SpO2 0.97 stays 0.97 and the plausibility check reports it.
    """
    if unit_from == unit_to:
        return (1.0, 0.0)
    return _CONVERSIONS.get((unit_from, unit_to))
