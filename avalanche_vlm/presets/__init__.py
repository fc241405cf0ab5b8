"""Published settings in one place: weights, templates, class orders, experiences and seeds.

Nothing is downloaded and no data set is read until a method of a setting is called.
"""

from avalanche_vlm.presets.cgil import CGIL_DATASETS, CGILSetting, cgil_setting
from avalanche_vlm.presets.class_incremental_setting import ClassIncrementalSetting
from avalanche_vlm.presets.gift import GIFTSetting, gift_setting
from avalanche_vlm.presets.mtil import MTIL_ORDERS, MTILSetting, mtil
from avalanche_vlm.presets.segp_cl import SeGPCLSetting, segp_cl_setting
from avalanche_vlm.presets.setting_a import SETTING_A_DATASETS, setting_a
from avalanche_vlm.presets.setting_b import SETTING_B_DATASETS, setting_b
from avalanche_vlm.presets.zscl import ZSCLSetting, zscl_setting

__all__ = [
    "CGIL_DATASETS",
    "MTIL_ORDERS",
    "SETTING_A_DATASETS",
    "SETTING_B_DATASETS",
    "CGILSetting",
    "ClassIncrementalSetting",
    "GIFTSetting",
    "MTILSetting",
    "SeGPCLSetting",
    "ZSCLSetting",
    "cgil_setting",
    "gift_setting",
    "mtil",
    "segp_cl_setting",
    "setting_a",
    "setting_b",
    "zscl_setting",
]
