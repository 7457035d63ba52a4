"""Chinese office prose: sentences of our own with blanks, filled in by chance. What `office-zh` is made of."""

from __future__ import annotations

import random

TEMPLATES = {
    "周报": ("一、本周主要工作", "二、重点项目进展", "三、存在的问题与风险", "四、下周工作计划", "五、需要协调的事项"),
    "会议纪要": ("一、会议基本情况", "二、议题与讨论要点", "三、形成的决议", "四、责任分工与时限", "五、遗留问题"),
    "合同审查意见": (
        "一、合同概况",
        "二、主体资格与授权",
        "三、付款与交付条款",
        "四、违约责任与争议解决",
        "五、修改建议",
    ),
    "预算分析报告": ("一、预算执行总体情况", "二、收入结构分析", "三、成本与费用分析", "四、偏差原因", "五、改进措施"),
    "招标文件": ("一、项目概况", "二、投标人资格要求", "三、技术与服务要求", "四、评标办法", "五、合同主要条款"),
    "岗位说明书": ("一、岗位目的", "二、主要职责", "三、任职资格", "四、工作关系", "五、考核指标"),
    "调研报告": ("一、调研背景与方法", "二、市场现状", "三、主要竞争对手", "四、用户访谈摘要", "五、结论与建议"),
    "通知公告": ("一、发文依据", "二、适用范围", "三、具体要求", "四、执行时间", "五、联系方式"),
}

RULES = (
    "你是公司的文书助理，请使用规范的书面语，先给出结论，再说明依据。",
    "所有金额保留两位小数，并同时注明币种和统计口径。",
    "引用制度文件时写明文件名称、条款编号和生效日期，不得凭记忆编造。",
    "涉及人员信息时只保留姓氏和职务，不出现证件号码和联系电话。",
    "表格先写表头，再逐行列出数据，合计行放在最后。",
    "遇到材料之间相互矛盾的地方，请列出差异，不要自行取舍。",
    "文档层次不超过三级，每一段落只讲一个意思。",
    "如果材料不足以得出结论，请说明还缺少哪些数据以及由哪个部门提供。",
)

SENTENCES = (
    "{部门}在{月}月份完成了{项目}的阶段性验收，比原计划提前{数}个工作日。",
    "截至目前，{项目}累计支出{数}.{数}万元，占年度预算的百分之{数}。",
    "会议认为，{项目}的进度总体可控，但人员配备仍需由{部门}进一步落实。",
    "根据{部门}的统计，本期共收到反馈意见{数}条，其中需要整改的有{数}条。",
    "请{部门}于{月}月{日}日前提交书面说明，并抄送{部门}备案。",
    "合同第{数}条约定的付款节点与{项目}的交付计划不一致，建议重新协商。",
    "与上一年度同期相比，{部门}的差旅费用下降了百分之{数}，主要原因是改为线上沟通。",
    "本次采购共有{数}家供应商参与报价，最高价与最低价相差{数}.{数}万元。",
    "{部门}建议将{项目}分为{数}个阶段实施，每个阶段结束后组织一次评审。",
    "访谈中多数用户表示，办理流程的等待时间是影响满意度的首要因素。",
    "对于已经逾期的{数}项任务，由{部门}逐项说明原因并提出补救措施。",
    "经核对，附件{数}中的数量与入库单相差{数}件，差异来自退换货登记滞后。",
    "下一步将围绕{项目}开展专项培训，预计覆盖{数}名员工。",
    "考虑到{月}月份为业务高峰，{部门}将增加{数}个临时岗位。",
    "该方案在成本、周期和风险三个方面均优于原方案，建议予以采纳。",
    "如遇不可抗力导致{项目}延期，双方应在{数}日内书面通知对方。",
)

WISHES = (
    "请根据以上材料撰写一份{题}，语言简洁，突出重点。",
    "请把第{数}部分改写得更正式一些，并补充数据来源。",
    "请将全文压缩到一页以内，保留全部结论。",
    "请检查前后数据是否一致，并把修改之处逐条列出。",
    "请另写一段面向管理层的摘要，不超过{数}百字。",
    "请按照{部门}的意见调整结构，把风险部分提前。",
)

_BLANKS = {
    "部门": (
        "财务部",
        "法务部",
        "人力资源部",
        "采购中心",
        "市场部",
        "信息技术部",
        "综合办公室",
        "审计部",
        "客户服务部",
    ),
    "项目": ("档案数字化项目", "园区扩建工程", "客户管理系统升级", "年度集中采购", "节能改造工程", "新员工培养计划"),
}


def template_text(title: str) -> str:
    """A template with what its sections have to contain, the same for whoever uses it."""
    chance = random.Random(title)
    parts = [f"《{title}》模板\n"]
    for heading in TEMPLATES[title]:
        parts.append(f"{heading}\n（本部分应包括以下内容，示例仅供参考。）\n")
        parts.append(prose(chance, 260, title))
    return "".join(parts)


def prose(chance: random.Random, characters: int, title: str, sentences: tuple[str, ...] = SENTENCES) -> str:
    """Sentences one after another, at least one and at least `characters` characters."""
    found: list[str] = []
    length = 0
    while length < characters or not found:
        found.append(_filled(chance, chance.choice(sentences), title))
        length += len(found[-1])
    return "".join(found)


def wish(chance: random.Random, title: str, is_first: bool) -> str:
    return _filled(chance, WISHES[0] if is_first else chance.choice(WISHES[1:]), title)


def _filled(chance: random.Random, sentence: str, title: str) -> str:
    parts = sentence.replace("{题}", title).split("{")
    found = [parts[0]]
    for part in parts[1:]:
        blank, rest = part.split("}")
        found += (_word(chance, blank), rest)
    return "".join(found)


def _word(chance: random.Random, blank: str) -> str:
    if words := _BLANKS.get(blank):
        return chance.choice(words)
    return str(chance.randint(1, {"月": 12, "日": 28}.get(blank, 99)))
